"""Streams, threads, devices and CUDA graphs: who may use what at the same time."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.runtime_settings import RuntimeSettings
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import Machine


def _in_threads(*jobs: Callable[[], None]) -> None:
    """Run jobs at the same time; raise what one of them raised."""
    failures: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_each_stream_has_a_context_of_its_own(machine: Machine) -> None:
    """Two streams would write to each other's memory."""
    run = runner(machine, doubling())
    for stream in (0, 5, 9, 5, 0):
        with machine.card.on(stream):
            x = machine.tensor(torch.randn(2, 3))
            torch.testing.assert_close(run([x])[0], x * 2)
    assert len(machine.contexts) == 3
    assert [stream for _, stream in machine.launches] == [0, 5, 9, 5, 0]


def test_two_streams_run_at_the_same_time(machine: Machine) -> None:
    """A lock for the whole engine would make a second stream useless."""
    meeting = threading.Barrier(2)

    def compute(values: list[torch.Tensor]) -> list[torch.Tensor]:
        meeting.wait(timeout=20)
        return [values[0] * 2]

    run = runner(machine, doubling(compute=compute))

    def call(stream: int) -> Callable[[], None]:
        def job() -> None:
            with machine.card.on(stream):
                x = machine.tensor(torch.randn(2, 3))
                torch.testing.assert_close(run([x])[0], x * 2)

        return job

    _in_threads(call(3), call(4))


@pytest.mark.parametrize("shared", [True, False], ids=["arena", "own scratch"])
def test_threads_on_one_stream_take_turns(machine: Machine, shared: bool) -> None:
    """A context keeps addresses between calls: two threads would launch with each other's."""

    def compute(values: list[torch.Tensor]) -> list[torch.Tensor]:
        time.sleep(0.001)
        return [values[0] * 2]

    settings = RuntimeSettings(shared_scratch=shared)
    runs = [
        runner(machine, doubling((-1, 3), compute=compute, scratch=size), settings)
        for size in (1024, 4096)
    ]

    def job() -> None:
        for at in range(20):
            x = machine.tensor(torch.randn(1 + at % 3, 3))
            torch.testing.assert_close(runs[at % 2]([x])[0], x * 2)

    _in_threads(job, job, job)
    assert len(machine.contexts) == 2


def test_an_engine_is_loaded_once_by_many_threads(machine: Machine) -> None:
    """Each thread would put the weights on the card."""
    run = runner(machine, doubling(weights=100))
    start = threading.Barrier(4)

    def job() -> None:
        start.wait(timeout=20)
        run([machine.tensor(torch.randn(2, 3))])

    _in_threads(job, job, job, job)
    assert len([name for _, name, _ in machine.calls if name == "deserialize_cuda_engine"]) == 1
    assert len([name for _, name, _ in machine.calls if name == "create_execution_context"]) == 1


def test_memory_of_another_stream_is_kept_until_this_one_has_read_it(machine: Machine) -> None:
    """The allocator would give an input's memory to others while the engine still reads it."""
    run = runner(machine, doubling())
    x = machine.tensor(torch.randn(2, 3))
    with machine.card.on(7):
        run([x])
    block = machine.memory.block_at(x.data_ptr())
    assert block is not None and block.kept == {7}
    del x
    gc.collect()
    machine.check()


def test_results_belong_to_the_stream_that_made_them(machine: Machine) -> None:
    """Their memory would be reused in the order of another stream."""
    run = runner(machine, doubling())
    with machine.card.on(7):
        (result,) = run([machine.tensor(torch.randn(2, 3))])
    block = machine.memory.block_at(result.data_ptr())
    assert block is not None and block.stream == 7


def test_the_engines_device_is_made_current(machine: Machine) -> None:
    """With several cards, kernels would be launched on another one."""
    run = runner(machine, doubling())
    x = machine.tensor(torch.randn(2, 3))
    with machine.card.elsewhere():
        torch.testing.assert_close(run([x])[0], x * 2)
        torch.testing.assert_close(run([x])[0], x * 2)


def test_an_engine_is_recorded_in_a_graph_with_the_context_it_ran_with(machine: Machine) -> None:
    """No context can be made during a recording: `torch.cuda.graph` would fail, or run eager."""
    run = runner(machine, doubling())
    x = machine.tensor(torch.randn(2, 3))
    with machine.card.on(3):
        run([x])
    with machine.card.on(8, capturing=True):
        torch.testing.assert_close(run([x])[0], x * 2)
    with machine.card.on(3):  # another context, so that it can run while the graph does
        torch.testing.assert_close(run([x])[0], x * 2)
    assert len(machine.contexts) == 2


def test_scratch_memory_of_a_graph_is_its_own(machine: Machine) -> None:
    """A graph keeps addresses: an arena that grows later would leave it with freed memory."""
    run = runner(machine, doubling())
    x = machine.tensor(torch.randn(2, 3))
    run([x])
    arena = [args for _, name, args in machine.calls if name == "set_device_memory"]
    machine.calls.clear()
    with machine.card.on(0, capturing=True):
        kept = run([x])
    recorded = [args for _, name, args in machine.calls if name == "set_device_memory"]
    assert recorded and recorded[0] != arena[0]
    machine.calls.clear()
    run([x])
    assert [args for _, name, args in machine.calls if name == "set_device_memory"] == arena
    del kept


def test_a_recording_before_the_first_call_is_refused(machine: Machine) -> None:
    """The reason must be said: the JIT cannot compile while a graph is recorded."""
    run = runner(machine, doubling())
    with machine.card.on(8, capturing=True):
        with pytest.raises(RuntimeFailure, match=r"must have run once .* torch\.cuda\.graph"):
            run([machine.tensor(torch.randn(2, 3))])


def test_graphs_of_tensorrts_own_are_not_recorded_in_others(machine: Machine) -> None:
    """Two recordings of one stream exclude each other."""
    run = runner(machine, doubling(), RuntimeSettings(cuda_graphs=True))
    x = machine.tensor(torch.randn(2, 3))
    run([x])
    with machine.card.on(8, capturing=True), pytest.raises(RuntimeFailure, match="cuda_graphs"):
        run([x])
