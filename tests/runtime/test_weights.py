"""Weights that do not fit on the card: streamed, or in turns."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime.engine import EngineRunner
from singlecard.runtime.weight_turns import WeightTurns
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import Machine


@pytest.mark.parametrize("budget, set_to", [(None, 4000), (0, 0), (1000, 1000), (9999, 4000)])
def test_the_budget_is_set_before_scratch_is_measured(
    machine: Machine, budget: int | None, set_to: int
) -> None:
    """Streaming needs scratch memory too: an engine would run with less than it writes to."""
    run = runner(machine, doubling(streamable=4000), RuntimeSettings(weight_budget=budget))
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)
    (engine,) = machine.engines
    assert engine.weight_streaming_budget_v2 == set_to
    (scratch,) = [args for _, name, args in machine.calls if name == "set_device_memory"]
    assert scratch[1] == 1024 + (4000 - set_to) // 2


def test_an_engine_without_streamable_weights_is_left_alone(machine: Machine) -> None:
    """A budget for the model would stop engines that were built without streaming."""
    run = runner(machine, doubling(), RuntimeSettings(weight_budget=10))
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)


def _runners(machine: Machine, turns: WeightTurns, sizes: list[int]) -> list[EngineRunner]:
    return [runner(machine, doubling(weights=size, scratch=0), turns=turns) for size in sizes]


def _loads(machine: Machine) -> list[str]:
    return [name for _, name, _ in machine.calls if name in ("load_weights", "unload_weights")]


def _weights(machine: Machine) -> int:
    return sum(engine._spec.weights for engine in machine.engines if engine.weights_loaded)


def test_engines_take_turns_within_the_budget(machine: Machine) -> None:
    """A model of two halves would need the memory of both at once."""
    runs = _runners(machine, WeightTurns(1000), [600, 700, 300])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 2, 0, 1, 2):
        torch.testing.assert_close(runs[at]([x])[0], x * 2)
        assert _weights(machine) <= 1000


def test_who_was_called_longest_ago_makes_room(machine: Machine) -> None:
    """The engine that is called all the time would be loaded all the time."""
    runs = _runners(machine, WeightTurns(1000), [400, 400, 400])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 2):
        runs[at]([x])
    machine.calls.clear()
    runs[0]([x])
    assert _loads(machine) == []
    runs[1]([x])
    assert _loads(machine) == ["unload_weights", "load_weights"]


def test_contexts_outlive_their_weights(machine: Machine) -> None:
    """Each turn would compile the kernels again."""
    runs = _runners(machine, WeightTurns(500), [400, 400])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 1):
        runs[at]([x])
    made = [name for _, name, _ in machine.calls if name == "create_execution_context"]
    assert len(made) == 2


def test_weights_go_behind_the_work_of_every_stream(machine: Machine) -> None:
    """Kernels that still run would read memory that is freed (the stand-in raises)."""
    runs = _runners(machine, WeightTurns(500), [400, 400])
    for stream in (1, 2):
        with machine.card.on(stream):
            runs[0]([machine.tensor(torch.randn(2, 3))])
    runs[1]([machine.tensor(torch.randn(2, 3))])
    assert _weights(machine) == 400


def test_weights_stay_while_their_engine_is_launched(machine: Machine) -> None:
    """Another thread's engine would take the weights away between two calls of the library."""
    inside, go_on = threading.Event(), threading.Event()

    def compute(values: list[torch.Tensor]) -> list[torch.Tensor]:
        inside.set()
        assert go_on.wait(timeout=20)
        return [values[0] * 2]

    turns = WeightTurns(500)
    slow = runner(machine, doubling(weights=400, compute=compute), turns=turns)
    quick = runner(machine, doubling(weights=400), turns=turns)
    done: list[str] = []

    def call(run: EngineRunner, stream: int, name: str) -> Callable[[], None]:
        def job() -> None:
            with machine.card.on(stream):
                run([machine.tensor(torch.randn(2, 3))])
            done.append(name)

        return job

    first = threading.Thread(target=call(slow, 1, "slow"))
    first.start()
    assert inside.wait(timeout=20)
    second = threading.Thread(target=call(quick, 2, "quick"))
    second.start()
    second.join(timeout=0.1)
    assert done == [] and _weights(machine) == 400
    go_on.set()
    first.join()
    second.join()
    assert sorted(done) == ["quick", "slow"]


def test_an_engine_larger_than_the_budget_is_refused_and_others_run(machine: Machine) -> None:
    """It would wait for ever."""
    large, small = _runners(machine, WeightTurns(500), [600, 400])
    x = machine.tensor(torch.randn(2, 3))
    with pytest.raises(RuntimeFailure, match=r"600 bytes, .* 500: give a larger memory_budget"):
        large([x])
    torch.testing.assert_close(small([x])[0], x * 2)


def test_an_engine_that_is_gone_leaves_its_room(machine: Machine) -> None:
    """A model that was replaced would hold the budget of the next."""
    turns = WeightTurns(500)
    runs = _runners(machine, turns, [400, 400])
    x = machine.tensor(torch.randn(2, 3))
    runs[0]([x])
    del runs[0]
    gc.collect()
    machine.calls.clear()
    runs[0]([x])
    assert _loads(machine) == ["load_weights"]


def test_a_graph_does_not_record_weights_that_move(machine: Machine) -> None:
    """A graph keeps addresses, of weights too."""
    (run,) = _runners(machine, WeightTurns(500), [400])
    x = machine.tensor(torch.randn(2, 3))
    run([x])
    with machine.card.on(0, capturing=True), pytest.raises(RuntimeFailure, match="take turns"):
        run([x])


def test_full_tensorrt_cannot_take_turns_and_says_so(make_machine: Callable[..., Machine]) -> None:
    """The option would do nothing, and the card run full."""
    machine = make_machine(full=True)
    (run,) = _runners(machine, WeightTurns(500), [400])
    with pytest.raises(RuntimeFailure, match="cannot take weights off the card"):
        run([machine.tensor(torch.randn(2, 3))])
