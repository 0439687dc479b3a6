"""CUDA graphs through PyTorch, for full TensorRT: the same answers as without."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from singlecard.network.runtime_settings import RuntimeSettings
from tests.runtime.engines import caching, doubling, runner
from tests.runtime.graphs import RECORDED, fresh, full_machine, held, inputs, is_same, weighing
from tests.runtime.stand_in import Machine


@pytest.fixture
def machine(make_machine: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with full TensorRT."""
    with full_machine(make_machine) as made:
        yield made


def test_the_second_call_is_recorded_and_the_third_launches_a_graph(machine: Machine) -> None:
    """A setting that does nothing."""
    run = runner(machine, doubling(), RECORDED)
    for replays in (0, 0, 1, 2):
        x = fresh(machine, 2, 3)
        is_same(run([x])[0], x * 2)
        assert len(machine.replays) == replays
    assert len(machine.card.graphs) == 1


def test_a_replay_asks_nothing_of_tensorrt(machine: Machine) -> None:
    """Host time is what graphs are for."""
    run = runner(machine, doubling(), RECORDED)
    for _ in range(2):
        run([fresh(machine, 2, 3)])
    machine.calls.clear()
    run([fresh(machine, 2, 3)])
    assert machine.calls == []


def test_results_belong_to_the_caller(machine: Machine) -> None:
    """A later call would overwrite an earlier call's result, as graphs by hand do."""
    run = runner(machine, doubling(), RECORDED)
    inputs = [fresh(machine, 2, 3) for _ in range(5)]
    results = [run([x])[0] for x in inputs]
    for x, result in zip(inputs, results, strict=True):
        is_same(result, x * 2)
    results[-1].zero_()
    is_same(run([inputs[0]])[0], inputs[0] * 2)


def test_an_input_changed_in_place_is_read_anew(machine: Machine) -> None:
    """The answer would be that of the recording."""
    run = runner(machine, doubling(), RECORDED)
    x = fresh(machine, 2, 3)
    for _ in range(5):
        is_same(run([x])[0], x * 2)
        x += 1
    assert len(machine.replays) == 3


def test_an_input_that_stays_is_not_copied(machine: Machine) -> None:
    """Parameters that are inputs would be copied at each call, and held twice."""
    run = runner(machine, weighing(scratch=0), RECORDED)
    weight = fresh(machine, 3)
    run([fresh(machine, 4, 3), weight])
    before = held(machine)
    x = fresh(machine, 4, 3)
    run([x, weight])
    assert held(machine) - before == 2 * x.nbytes  # the moved input, and the result
    weight += 1
    is_same(run([x, weight])[0], x * weight)
    assert machine.replays


def test_an_input_that_moves_later_is_copied_from_then_on(machine: Machine) -> None:
    """A model that loads other weights would compute with memory that was freed."""
    run = runner(machine, weighing(), RECORDED)
    for _ in range(3):
        weight = fresh(machine, 3)
        for _ in range(3):
            x = fresh(machine, 4, 3)
            is_same(run([x, weight])[0], x * weight)
        del weight
    replays = len(machine.replays)
    run([x, fresh(machine, 3)])
    assert len(machine.replays) == replays + 1


def test_memory_at_the_same_address_may_have_another_order(machine: Machine) -> None:
    """A transposed view begins where its base does, and would be read as that."""
    run = runner(machine, doubling((3, 3)), RECORDED)
    x = fresh(machine, 3, 3)
    for value in (x, x, x, x.t(), x, x.t()):
        is_same(run([value])[0], value * 2)


def test_each_shape_has_a_graph(machine: Machine) -> None:
    """A model with two batch sizes would record at each call, or answer with the other size."""
    run = runner(machine, doubling((-1, 3)), RECORDED)
    for _ in range(4):
        for rows in (2, 5):
            x = fresh(machine, rows, 3)
            is_same(run([x])[0], x * 2)
    assert len(machine.card.graphs) == 2 and len(machine.replays) == 4


def testinputs_that_are_empty_are_recorded_too(machine: Machine) -> None:
    """They have no address, which must not be that of something."""
    run = runner(machine, doubling((-1, 3)), RECORDED)
    for _ in range(4):
        assert run([fresh(machine, 0, 3)])[0].shape == (0, 3)


def test_a_cache_is_written_where_it_lies(machine: Machine) -> None:
    """A decoder's cache would be written in the graph's memory, and stay as it was."""
    run = runner(machine, caching(), RECORDED)
    cache = fresh(machine, 2, 4)
    for _ in range(5):
        x = fresh(machine, 2, 4)
        expected, version = x + cache, cache._version
        written, total = run([x, cache])
        assert written is cache and cache._version > version
        is_same(cache, expected)
        is_same(total, expected.sum(1))
    assert len(machine.replays) == 3


def test_each_cache_has_a_graph(machine: Machine) -> None:
    """Two conversations would write to one cache."""
    run = runner(machine, caching(), RECORDED)
    caches = [fresh(machine, 2, 4) for _ in range(2)]
    for _ in range(4):
        for cache in caches:
            x = fresh(machine, 2, 4)
            expected = x + cache
            run([x, cache])
            is_same(cache, expected)
    assert len(machine.card.graphs) == 2 and len(machine.replays) == 4


def test_a_cache_that_is_a_view_is_written_without_a_graph(machine: Machine) -> None:
    """It is copied and copied back, to an address that the next call does not have."""
    run = runner(machine, caching(), RECORDED)
    cache = fresh(machine, 4, 2).t()
    for _ in range(4):
        x = fresh(machine, 2, 4)
        expected = x + cache
        run([x, cache])
        is_same(cache, expected)
    assert not machine.card.graphs


def test_a_call_in_the_callers_recording_is_part_of_it(machine: Machine) -> None:
    """A graph cannot be replayed in a recording."""
    run = runner(machine, doubling(), RECORDED)
    for stream in (3, 8):  # that it ran on before, and another one
        with machine.card.on(3):
            x = fresh(machine, 2, 3)
            for _ in range(4):
                is_same(run([x])[0], x * 2)
        replays = len(machine.replays)
        with machine.card.on(stream, capturing=True):
            is_same(run([x])[0], x * 2)
        assert len(machine.replays) == replays
        with machine.card.on(3):
            is_same(run([x])[0], x * 2)
        assert len(machine.replays) == replays + 1


def test_each_stream_has_graphs_of_its_own(machine: Machine) -> None:
    """Two streams would launch one graph, which CUDA does one time after the other."""
    run = runner(machine, doubling(), RECORDED)
    for _ in range(4):
        for stream in (0, 5):
            with machine.card.on(stream):
                x = fresh(machine, 2, 3)
                is_same(run([x])[0], x * 2)
    assert len(machine.card.graphs) == 2
    assert [stream for _, stream in machine.replays] == [0, 5, 0, 5]


def test_memory_of_another_stream_is_kept_until_a_graph_has_read_it(machine: Machine) -> None:
    """The allocator would give an input's memory to others while the graph still reads it."""
    run = runner(machine, doubling(), RECORDED)
    for _ in range(4):
        x = fresh(machine, 2, 3)
        with machine.card.on(7):
            run([x])
        block = machine.memory.block_at(x.data_ptr())
        assert block is not None and block.kept == {7}
    assert machine.replays


@pytest.mark.parametrize("shared", [True, False], ids=["arena", "own scratch"])
@pytest.mark.parametrize("streams", [1, 3])
def test_threads(machine: Machine, shared: bool, streams: int) -> None:
    """They would copy inputs to the memory of each other's graphs."""
    settings = RuntimeSettings(cuda_graphs=True, shared_scratch=shared)
    runs = [runner(machine, doubling((-1, 3), scratch=size), settings) for size in (512, 4096)]
    failures: list[BaseException] = []

    def job(number: int) -> None:
        try:
            with machine.card.on(number % streams):
                for at in range(40):
                    x = fresh(machine, 1 + at % 3, 3)
                    is_same(runs[at % 2]([x])[0], x * 2)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=job, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(machine.replays) > 60


@pytest.mark.parametrize(
    "modes",
    [
        (torch.inference_mode, torch.no_grad, torch.enable_grad),
        (torch.enable_grad, torch.inference_mode, torch.no_grad),
    ],
    ids=["inference first", "inference later"],
)
def test_calls_in_other_modes_of_autograd(
    machine: Machine, modes: tuple[Callable[[], Any], ...]
) -> None:
    """Memory made in inference mode takes no write outside of it, and a graph has one memory."""
    run = runner(machine, doubling(), RECORDED)
    for mode in modes:
        for _ in range(3):
            with mode():
                x = fresh(machine, 2, 3)
                if not x.is_inference():
                    x.requires_grad_()
                (result,) = run([x])
                is_same(result, x.detach() * 2)
                assert not result.requires_grad
    assert len(machine.replays) == 7


def test_inputs_that_are_differentiated_are_not_kept(machine: Machine) -> None:
    """Each call would add to a history that nobody asks for, with all inputs in it."""
    run = runner(machine, doubling(), RECORDED)
    for _ in range(4):
        run([fresh(machine, 2, 3).requires_grad_()])
    assert machine.replays
    addresses = [value.data_ptr() for value in inputs]
    inputs.clear()
    gc.collect()
    assert not any(map(machine.memory.block_at, addresses))
