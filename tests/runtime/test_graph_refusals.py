"""What is not recorded in CUDA graphs runs without, and says so once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from singlecard.errors import RuntimeFailure
from singlecard.network.runtime_settings import RuntimeSettings
from tests.runtime.engines import doubling, positives, runner
from tests.runtime.graphs import RECORDED, fresh, full_machine, is_same
from tests.runtime.stand_in import Machine, Spec


@pytest.fixture
def machine(make_machine: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with full TensorRT."""
    with full_machine(make_machine) as made:
        yield made


def test_results_whose_size_only_the_run_tells(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """The host must know their size, so that no graph can give them."""
    run = runner(machine, positives(), RECORDED)
    for _ in range(4):
        x = fresh(machine, 8)
        is_same(run([x])[0], x[x > 0])
    assert not machine.card.graphs
    assert caplog.text.count("without CUDA graphs") == 1


def test_weights_that_are_streamed(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """They are copied by the host's order, at each call."""
    settings = RuntimeSettings(cuda_graphs=True, weight_budget=1000)
    for _ in range(2):
        run = runner(machine, doubling(streamable=4000), settings)
        for _ in range(4):
            x = fresh(machine, 2, 3)
            is_same(run([x])[0], x * 2)
    assert not machine.card.graphs
    assert caplog.text.count("copied to the card at each call") == 1
    kept = RuntimeSettings(cuda_graphs=True, weight_budget=4000)
    run = runner(machine, doubling(streamable=4000), kept)
    for _ in range(2):
        run([fresh(machine, 2, 3)])
    assert machine.card.graphs  # all weights stay


def test_weights_that_come_and_go(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """A graph would read where they were."""
    settings = RuntimeSettings(cuda_graphs=True, memory_budget=1 << 20)
    run = runner(machine, doubling(), settings)
    for _ in range(4):
        x = fresh(machine, 2, 3)
        is_same(run([x])[0], x * 2)
    assert not machine.card.graphs
    assert "come and go" in caplog.text


def _no_record(machine: Machine) -> Spec:
    return doubling(refusals={"record": 1})


def _no_capture(machine: Machine) -> Spec:
    machine.card.records_nothing = "operation not permitted when stream is capturing"
    return doubling()


@pytest.mark.parametrize("spoil", [_no_record, _no_capture], ids=["TensorRT", "CUDA"])
def test_what_cannot_be_recorded_runs_without(
    machine: Machine, caplog: pytest.LogCaptureFixture, spoil: Callable[[Machine], Spec]
) -> None:
    """An option that is to save time would end the program."""
    run = runner(machine, spoil(machine), RECORDED)
    for _ in range(5):
        x = fresh(machine, 2, 3)
        is_same(run([x])[0], x * 2)
        assert not machine.card.is_capturing() and machine.card.stream() == 0
    assert not machine.replays
    assert len(machine.contexts) == 1  # that of the graph is given back
    assert caplog.text.count("without CUDA graphs") == 1


def test_no_context_for_a_graph(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """A card that is full would stop engines that run."""
    spec = doubling()
    run = runner(machine, spec, RECORDED)
    run([fresh(machine, 2, 3)])
    spec.refusals["context"] = 9
    for _ in range(3):
        x = fresh(machine, 2, 3)
        is_same(run([x])[0], x * 2)
    assert "another execution context" in caplog.text


def test_a_launch_that_fails_is_tried_again(machine: Machine) -> None:
    """One failure would leave a graph of nothing."""
    spec = doubling()
    run = runner(machine, spec, RECORDED)
    run([fresh(machine, 2, 3)])
    spec.refusals["launch"] = 1
    with pytest.raises(RuntimeFailure, match="launch failed"):
        run([fresh(machine, 2, 3)])
    for _ in range(3):
        x = fresh(machine, 2, 3)
        is_same(run([x])[0], x * 2)
    made = [name for _, name, _ in machine.calls if name == "create_execution_context"]
    assert len(made) == 2 and len(machine.replays) == 2


def test_wrong_inputs_are_refused_by_a_recorded_engine(machine: Machine) -> None:
    """A copy would convert them without a word."""
    run = runner(machine, doubling(), RECORDED)
    for _ in range(3):
        run([fresh(machine, 2, 3)])
    with pytest.raises(RuntimeFailure, match="takes torch.float32"):
        run([fresh(machine, 2, 3).double()])
    with pytest.raises(RuntimeFailure, match="does not take the shape"):
        run([fresh(machine, 3, 3)])
    x = fresh(machine, 2, 3)
    is_same(run([x])[0], x * 2)


def test_tensorrt_for_rtx_records_by_itself(make_machine: Callable[..., Machine]) -> None:
    """Its graphs follow kernels that are compiled behind the calls: ours would keep old ones."""
    machine = make_machine()
    run = runner(machine, doubling(), RECORDED)
    for _ in range(4):
        run([fresh(machine, 2, 3)])
    assert not machine.card.graphs and len(machine.contexts) == 1
    machine.check()


def test_nothing_is_recorded_unless_it_is_asked_for(machine: Machine) -> None:
    """Graphs take a context each, and copies."""
    run = runner(machine, doubling())
    for _ in range(4):
        run([fresh(machine, 2, 3)])
    assert not machine.card.graphs and len(machine.contexts) == 1
