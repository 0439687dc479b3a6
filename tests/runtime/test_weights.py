"""Weights that do not fit on the card: streamed, or in turns."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.network import weights
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime import engine as engine_module
from singlecard.runtime.engine import EngineRunner
from singlecard.runtime.weight_turns import WeightTurns, weight_share
from tests.runtime.engines import caching, doubling, runner
from tests.runtime.stand_in import HEADER, Machine, Spec


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


def test_an_engine_that_was_built_without_streaming_keeps_no_budget_in_silence(
    machine: Machine,
) -> None:
    """The card would run full, as if no budget had been given."""
    run = runner(machine, doubling(), RuntimeSettings(weight_budget=1 << 20))
    assert isinstance(run.plan, Path)
    run.plan.write_bytes(run.plan.read_bytes()[:HEADER].ljust(18 << 20, b"\0"))
    with pytest.raises(RuntimeFailure, match="without weight streaming.* 1048576 of memory_budget"):
        run([machine.tensor(torch.randn(2, 3))])


def test_an_engine_without_streamable_weights_is_left_alone(machine: Machine) -> None:
    """A budget for the model would stop engines that were built without streaming."""
    run = runner(machine, doubling(), RuntimeSettings(weight_budget=10))
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)


@pytest.fixture(autouse=True)
def turns(monkeypatch: pytest.MonkeyPatch) -> WeightTurns:
    """Those of the card, which other tests have no part in."""
    own = WeightTurns()
    monkeypatch.setattr(engine_module, "turns_of", lambda device: own)
    return own


def _run(
    machine: Machine,
    budget: int,
    size: int,
    *,
    of: Callable[..., Spec] = doubling,
    **changes: Any,
) -> EngineRunner:
    """Return what runs an engine with so many bytes of weights, and of plan."""
    spec = of(weights=size, scratch=0, **changes)
    run = runner(machine, spec, RuntimeSettings(memory_budget=budget))
    assert isinstance(run.plan, Path)
    run.plan.write_bytes(run.plan.read_bytes()[:HEADER].ljust(size, b"\0"))
    return run


def _runners(machine: Machine, budget: int, sizes: list[int]) -> list[EngineRunner]:
    return [_run(machine, budget, size) for size in sizes]


_MOVES = ("load_weights", "unload_weights", "save_to_buffer", "restore_from_buffer", "unload")


def _loads(machine: Machine) -> list[str]:
    return [name for _, name, _ in machine.calls if name in _MOVES]


def _weights(machine: Machine) -> int:
    return sum(engine._spec.weights for engine in machine.engines if engine.weights_loaded)


def test_engines_take_turns_within_the_budget(machine: Machine) -> None:
    """A model of two halves would need the memory of both at once."""
    runs = _runners(machine, 1000, [600, 700, 300])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 2, 0, 1, 2):
        torch.testing.assert_close(runs[at]([x])[0], x * 2)
        assert _weights(machine) <= 1000


def test_who_was_called_longest_ago_makes_room(machine: Machine) -> None:
    """The engine that is called all the time would be loaded all the time."""
    runs = _runners(machine, 1000, [400, 400, 400])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 2):
        runs[at]([x])
    machine.calls.clear()
    runs[0]([x])
    assert _loads(machine) == []
    runs[1]([x])
    assert _loads(machine) == ["save_to_buffer", "unload", "restore_from_buffer"]


def test_weights_are_read_from_the_plan_once(machine: Machine) -> None:
    """Each turn would read them through the page cache, several times slower."""
    runs = _runners(machine, 500, [400, 400])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 1):
        torch.testing.assert_close(runs[at]([x])[0], x * 2)
    first = ["load_weights", "save_to_buffer", "unload"]
    assert _loads(machine) == [
        *first,
        *first,
        "restore_from_buffer",
        "unload",
        "restore_from_buffer",
    ]


@pytest.mark.parametrize("why", ["manager", "save", "restore", "unload", "room", "locked"])
def test_weights_come_from_the_plan_where_host_memory_does_not_hold_them(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """The engine would be lost for want of what only makes it faster."""
    refusals = {why: 9} if why in ("manager", "save", "restore", "unload") else {}
    runs = [_run(machine, 500, 400, refusals=dict(refusals)) for _ in range(2)]
    if why == "room":
        monkeypatch.setattr(weights, "free_memory", lambda: 1000)
    if why == "locked":
        machine.card.hosted.capacity = 100
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 1):
        torch.testing.assert_close(runs[at]([x])[0], x * 2)
        assert _weights(machine) <= 500
    assert _loads(machine).count("load_weights") == 4


def test_contexts_outlive_their_weights(machine: Machine) -> None:
    """Each turn would compile the kernels again."""
    runs = _runners(machine, 500, [400, 400])
    x = machine.tensor(torch.randn(2, 3))
    for at in (0, 1, 0, 1):
        runs[at]([x])
    made = [name for _, name, _ in machine.calls if name == "create_execution_context"]
    assert len(made) == 2


def test_weights_go_behind_the_work_of_every_stream(machine: Machine) -> None:
    """Kernels that still run would read memory that is freed (the stand-in raises)."""
    runs = _runners(machine, 500, [400, 400])
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

    slow, quick = _run(machine, 500, 400, compute=compute), _run(machine, 500, 400)
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
    large, small = _runners(machine, 500, [600, 400])
    x = machine.tensor(torch.randn(2, 3))
    with pytest.raises(RuntimeFailure, match=r"600 bytes, .* 500: give a larger memory_budget"):
        large([x])
    torch.testing.assert_close(small([x])[0], x * 2)


def test_an_engine_that_is_gone_leaves_its_room(machine: Machine) -> None:
    """A model that was replaced would hold the budget of the next."""
    runs = _runners(machine, 500, [400, 400])
    x = machine.tensor(torch.randn(2, 3))
    runs[0]([x])
    del runs[0]
    gc.collect()
    machine.calls.clear()
    runs[0]([x])
    assert _loads(machine) == ["load_weights"]


def test_weights_that_a_graph_has_recorded_stay(machine: Machine) -> None:
    """A graph keeps addresses, of weights too: replayed, it would read what is there by then."""
    first, second, third = _runners(machine, 1000, [400, 400, 400])
    x = machine.tensor(torch.randn(2, 3))
    with machine.card.on(0, capturing=True), pytest.raises(RuntimeFailure, match="have run once"):
        first([x])
    first([x])
    (held,) = machine.engines
    with machine.card.on(0, capturing=True):
        first([x])
    for run in (second, third, second):
        run([x])
    assert held.weights_loaded and _weights(machine) == 800


def test_recorded_graphs_that_leave_no_room_are_named(machine: Machine) -> None:
    """The next engine would wait for ever for memory that no one gives back."""
    first, second = _runners(machine, 500, [400, 300])
    x = machine.tensor(torch.randn(2, 3))
    first([x])
    with machine.card.on(0, capturing=True):
        first([x])
    with pytest.raises(RuntimeFailure, match="300 bytes, .* 500, of which 400 belong to recorded"):
        second([x])


def test_of_two_budgets_the_smaller_counts(machine: Machine) -> None:
    """Whoever asked for it keeps the rest of the card for something else."""
    first, second = _run(machine, 1000, 400), _run(machine, 600, 400)
    x = machine.tensor(torch.randn(2, 3))
    for run in (first, second, first):
        run([x])
        assert _weights(machine) <= (1000 if run is first else 600)
    assert _weights(machine) == 400


@pytest.mark.parametrize(
    "full, streamed", [(True, False), (False, True)], ids=["full TensorRT", "streamed weights"]
)
def test_engines_go_as_a_whole_where_their_weights_alone_cannot(
    make_machine: Callable[..., Machine], full: bool, streamed: bool
) -> None:
    """The budget would hold for one kind of engine, and the card run full with the other."""
    machine = make_machine(full=full)
    x = machine.tensor(torch.randn(2, 3))
    runs = []
    for _ in range(2):
        run = _run(machine, 500, 700 if streamed else 400, streamable=700 if streamed else 0)
        if streamed:
            run.settings = RuntimeSettings(memory_budget=500, weight_budget=500)
        runs.append(run)
    for run in (*runs, *runs):
        torch.testing.assert_close(run([x])[0], x * 2)
        gc.collect()
        assert len(machine.engines) == 1
    assert _loads(machine) == []


@pytest.mark.parametrize(
    "sizes, budget, shares",
    [
        ([300, 100], None, [None, None]),
        ([300, 100], 400, [None, None]),
        ([300, 100], 200, [150, 50]),
    ],
)
def test_engines_of_one_graph_stream_the_same_part(
    sizes: list[int], budget: int | None, shares: list[int | None]
) -> None:
    """All run in each call: taking turns, each would be copied to the card each time."""
    assert [weight_share(size, sum(sizes), budget) for size in sizes] == shares


def test_an_engine_that_cannot_be_loaded_takes_no_turn(machine: Machine) -> None:
    """Each call that PyTorch answers in its place would take the weights of others away."""
    works, fails = _run(machine, 500, 400), _run(machine, 500, 400, refusals={"load": 99})
    x = machine.tensor(torch.randn(2, 3))
    with pytest.raises(RuntimeFailure, match="could not load"):
        fails([x])
    works([x])
    machine.calls.clear()
    with pytest.raises(RuntimeFailure, match="could not load"):
        fails([x])
    works([x])
    assert _loads(machine) == []


def test_weights_stay_for_a_launch_whose_call_fails_behind_it(machine: Machine) -> None:
    """Its kernels run on, and would read memory that is freed (the stand-in raises)."""
    failing, other = _run(machine, 500, 400, of=caching), _run(machine, 500, 400)
    x, cache = machine.tensor(torch.randn(2, 4)), machine.tensor(torch.randn(1, 4))
    for _ in range(2):  # the first time, they are saved before they go
        with pytest.raises(RuntimeError, match="single memory location"):
            failing([x, cache.expand(2, 4)])
        other([machine.tensor(torch.randn(2, 3))])
    assert _weights(machine) == 400


class _Slow:
    """An engine whose weights take their time."""

    weight_bytes = 100

    def __init__(self, fails: bool = False) -> None:
        self.begun, self.go_on, self.fails = threading.Event(), threading.Event(), fails
        self.loads = 0

    def load_weights(self) -> None:
        self.loads += 1
        self.begun.set()
        assert self.go_on.wait(timeout=20)
        if self.fails:
            raise RuntimeFailure("no memory")

    def unload_weights(self) -> None:
        pass


def _in_thread(turns: WeightTurns, member: _Slow, done: list[str], name: str) -> threading.Thread:
    def job() -> None:
        try:
            with turns.taken(member):
                done.append(name)
        except RuntimeFailure:
            done.append(f"{name} failed")

    thread = threading.Thread(target=job)
    thread.start()
    return thread


def test_an_engine_on_the_card_runs_while_another_is_loaded(turns: WeightTurns) -> None:
    """A request would wait for seconds for a model that it does not ask for."""
    slow, ready, done = _Slow(), _Slow(), list[str]()
    ready.go_on.set()
    for member in (slow, ready):
        turns.add(member, 1000)
    with turns.taken(ready):
        pass
    first = _in_thread(turns, slow, done, "first")
    assert slow.begun.wait(timeout=20)
    second = _in_thread(turns, slow, done, "second")
    third = _in_thread(turns, ready, done, "ready")
    third.join(timeout=20)
    assert done == ["ready"]
    slow.go_on.set()
    first.join(timeout=20)
    second.join(timeout=20)
    assert sorted(done) == ["first", "ready", "second"] and slow.loads == 1


def test_who_waits_for_weights_that_fail_to_load_tries_itself(turns: WeightTurns) -> None:
    """It would launch without weights, or wait for ever."""
    slow, done = _Slow(fails=True), list[str]()
    turns.add(slow, 1000)
    first = _in_thread(turns, slow, done, "first")
    assert slow.begun.wait(timeout=20)
    second = _in_thread(turns, slow, done, "second")
    slow.go_on.set()
    first.join(timeout=20)
    second.join(timeout=20)
    assert sorted(done) == ["first failed", "second failed"] and slow.loads == 2
    slow.fails = False
    with turns.taken(slow):
        assert slow.loads == 3
