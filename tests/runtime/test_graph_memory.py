"""Memory of CUDA graphs: how much they hold, and when it is given back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from singlecard.errors import RuntimeFailure
from singlecard.network.recording import GRAPHS
from tests.runtime.engines import caching, doubling, runner
from tests.runtime.graphs import RECORDED, fresh, full_machine, held, inputs, is_same, weighing
from tests.runtime.stand_in import Machine


@pytest.fixture
def machine(make_machine: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with full TensorRT."""
    with full_machine(make_machine) as made:
        yield made


@pytest.mark.parametrize("shapes, graphs", [(GRAPHS, GRAPHS), (GRAPHS + 1, 0)])
def test_graphs_are_bounded(machine: Machine, shapes: int, graphs: int) -> None:
    """Lengths of all kinds would fill the card, or each be recorded for nothing."""
    run = runner(machine, doubling((-1, 3)), RECORDED)
    for _ in range(3):
        for rows in range(1, shapes + 1):
            x = fresh(machine, rows, 3)
            is_same(run([x])[0], x * 2)
    assert len(machine.card.graphs) == graphs
    assert len(machine.contexts) == graphs + 1


def test_the_graph_used_longest_ago_goes_with_its_memory(machine: Machine) -> None:
    """Sizes that are out of use would hold the card's memory for ever."""
    run = runner(machine, doubling((-1, 3), scratch=0), RECORDED)

    def call(rows: int, times: int) -> None:
        for _ in range(times):
            x = fresh(machine, rows, 3)
            is_same(run([x])[0], x * 2)

    call(1, 3)
    before = held(machine)
    call(1000, 3)
    call(1, 1)
    assert len(machine.card.graphs) == 2 and held(machine) == before + 24_000
    for rows in range(2, GRAPHS + 1):  # others, of which none comes twice
        call(rows, 1)
        call(1, 1)
    assert len(machine.card.graphs) == 1 and held(machine) == before
    contexts = len(machine.contexts)
    call(3, 3)  # in the context of the one that went
    assert len(machine.contexts) == contexts
    replays = len(machine.replays)
    call(1, 1)
    assert len(machine.replays) == replays + 1


def test_graphs_of_a_stream_share_their_memory(machine: Machine) -> None:
    """Each size would hold its own inputs and results: only one is in use at a time."""
    run = runner(machine, doubling((-1, 3), scratch=0), RECORDED)
    sizes = []
    for rows in (64, 32, 16):
        for _ in range(3):
            run([fresh(machine, rows, 3)])
        sizes.append(held(machine))
    assert sizes == [sizes[0]] * 3


def test_a_graph_goes_only_when_it_is_done(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA does not say what happens to work whose graph is gone."""
    run = runner(machine, doubling((-1, 3)), RECORDED)
    for _ in range(3):
        run([fresh(machine, 1, 3)])
    waits: list[int] = []
    mark = machine.card.mark

    def marked() -> Any:
        assert len(machine.card.graphs) == 1
        waits.append(machine.card.stream())
        return mark()

    monkeypatch.setattr(machine.card, "mark", marked)
    for rows in range(2, GRAPHS + 2):
        run([fresh(machine, rows, 3)])
    assert waits == [0] and not machine.card.graphs


def test_nothing_is_written_where_there_is_no_memory_for_the_results(machine: Machine) -> None:
    """What runs in PyTorch in place of the call would add to the cache a second time."""
    run = runner(machine, caching(), RECORDED)
    x, cache = fresh(machine, 2, 4), fresh(machine, 2, 4)
    for _ in range(3):
        run([x, cache])
    before = cache.clone()
    machine.memory.capacity = 0
    with pytest.raises(RuntimeFailure, match="too little free memory"):
        run([x, cache])
    is_same(cache, before)


def test_scratch_that_another_engine_replaced_is_recorded_anew(machine: Machine) -> None:
    """The graph would write to memory that is somebody else's since."""
    small, large = (runner(machine, doubling(scratch=size), RECORDED) for size in (1000, 3000))

    def call() -> None:
        x = fresh(machine, 2, 3)
        is_same(small([x])[0], x * 2)

    for _ in range(3):
        call()
    large([fresh(machine, 2, 3)])
    assert len(machine.replays) == 1
    call()
    call()
    assert len(machine.replays) == 2 and len(machine.card.graphs) == 1


def test_graphs_use_the_scratch_memory_of_the_stream(machine: Machine) -> None:
    """A model of a hundred engines would hold a hundred blocks."""
    runs = [runner(machine, doubling(scratch=100_000), RECORDED) for _ in range(3)]
    for _ in range(3):
        for run in runs:
            run([fresh(machine, 2, 3)])
    assert len(machine.card.graphs) == 3
    assert held(machine) < 2 * 100_000


@pytest.mark.parametrize("calls, room", [(1, 1.5), (3, 0.5)], ids=["at first", "later"])
def test_graphs_go_where_memory_is_short(
    machine: Machine, caplog: pytest.LogCaptureFixture, calls: int, room: float
) -> None:
    """The memory that graphs need would take the place of the results."""
    run = runner(machine, doubling((5000, 3)), RECORDED)
    x = fresh(machine, 5000, 3)
    for _ in range(calls):
        run([x])
    machine.memory.capacity = machine.memory.used + int(room * x.nbytes)
    for _ in range(3):
        is_same(run([x])[0], x * 2)
    assert not machine.card.graphs and len(machine.contexts) == 1
    assert "tried to allocate" in caplog.text


def test_all_goes_with_the_runner(machine: Machine) -> None:
    """A model that is replaced would leave its graphs on the card."""
    run = runner(machine, weighing(weights=4096), RECORDED)
    for rows in (2, 2, 3, 3, 2):
        run([fresh(machine, rows, 3), fresh(machine, 3)])
    assert machine.card.graphs
    inputs.clear()
    gc.collect()
    gc.disable()
    try:
        del run  # at once: nobody knows when cycles are collected
        assert not machine.contexts and not machine.engines and not machine.card.graphs
        assert not machine.memory.used
    finally:
        gc.enable()


def test_a_thousand_calls_take_no_more_memory_than_few(machine: Machine) -> None:
    """A service runs for weeks."""
    run = runner(machine, doubling((-1, 3)), RECORDED)
    batches = [fresh(machine, 1 + at % 3, 3) for at in range(6)]
    for at in range(18):
        run([batches[at % 6]])
    used = machine.memory.used
    for at in range(1000):
        run([batches[at % 6]])
    assert machine.memory.used == used and len(machine.replays) > 1000
