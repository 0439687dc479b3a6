"""Weights that engines hold leave the card, and come back."""

from __future__ import annotations

from typing import Any

import pytest
import tensorrt_rtx as real
import torch
from torch import nn

import singlecard
from singlecard.errors import RuntimeFailure
from singlecard.runtime import offload
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.offload import Offload, move_to_card, move_to_host
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import Machine


def _weight(machine: Machine, *shape: int) -> nn.Parameter:
    return nn.Parameter(machine.tensor(torch.randn(shape)))


def _frozen(*weights: torch.Tensor) -> Frozen:
    return Frozen(range(len(weights)), weights)


def test_weights_leave_the_card_and_come_back(machine: Machine) -> None:
    """A model and its engines would need the memory of both; what left must not be lost."""
    weight, empty = _weight(machine, 30, 40), machine.memory.used
    values, version = weight.detach().clone(), weight._version
    assert move_to_host([weight], machine.card) == 4800
    assert machine.memory.used == empty - 4800
    assert torch.equal(weight.detach(), values) and weight._version == version
    assert weight.requires_grad and weight.is_leaf
    assert move_to_host([weight], machine.card) == 0
    assert move_to_card([weight], machine.card) == 4800
    assert machine.memory.used == empty and torch.equal(weight.detach(), values)
    assert move_to_card([weight], machine.card) == 0


@pytest.mark.parametrize("made", [False, True], ids=["parameter", "inference tensor"])
@pytest.mark.parametrize("moved", [False, True], ids=["outside", "inside"])
def test_the_mode_of_the_call_leaves_no_mark(machine: Machine, made: bool, moved: bool) -> None:
    """Dynamo's guards look at the kind of tensor: each would be traced again after the move."""
    with torch.inference_mode(made):
        weight = _weight(machine, 8)
    keys = torch._C._dispatch_keys(weight)
    with torch.inference_mode(moved):
        assert move_to_host([weight], machine.card) == 32
    assert torch._C._dispatch_keys(weight) == keys and weight.is_inference() == made


def test_compiled_graphs_follow_their_weights(machine: Machine) -> None:
    """Each graph of the model would be compiled again for weights that only moved."""
    first, second = _weight(machine, 8), _weight(machine, 8)
    prefill, decode = _frozen(first, second), _frozen(second)
    move_to_host([first, second], machine.card)
    assert prefill.are_current([first, second]) and decode.are_current([second])
    move_to_card([second], machine.card)
    assert prefill.are_current([first, second]) and decode.are_current([second])


def test_weights_that_changed_before_they_moved_stay_changed(machine: Machine) -> None:
    """An engine of other weights would answer."""
    weight = _weight(machine, 8)
    frozen = _frozen(weight)
    weight.data = machine.tensor(torch.randn(8))
    move_to_host([weight], machine.card)
    assert not frozen.are_current([weight])


def test_memory_that_others_hold_stays(machine: Machine) -> None:
    """Nothing would be freed, and writes through a view would not reach the weight any more."""
    weight = _weight(machine, 4, 4)
    view = weight.data[1:]
    assert move_to_host([weight], machine.card) == 0
    view.zero_()
    assert not weight[1:].any()


def test_weights_in_one_memory_go_together(machine: Machine) -> None:
    """Tied weights would part: training one would leave the other behind."""
    whole = machine.tensor(torch.randn(6, 4))
    first, second = nn.Parameter(whole[:4]), nn.Parameter(whole[2:].t())
    values = first.detach().clone(), second.detach().clone()
    del whole
    assert move_to_host([first, second], machine.card) == 96
    assert torch.equal(first.detach(), values[0]) and torch.equal(second.detach(), values[1])
    with torch.no_grad():
        first[3] = 7
    assert (second[:, 1] == 7).all()


@pytest.mark.parametrize(
    "wanted, share, moves",
    [(None, 0.2, False), (None, 0.3, True), (True, 0.01, True), (False, 0.5, False)],
)
def test_big_weights_are_moved_without_being_asked(
    machine: Machine, wanted: bool | None, share: float, moves: bool
) -> None:
    """Small models would be slower in PyTorch for nothing; big ones would not fit twice."""
    machine.memory.capacity = 100_000
    weight = _weight(machine, int(100_000 * share) // 4)
    Offload(_frozen(weight), wanted)(machine.card)
    assert (machine.card.host_view(weight) is not None) == moves


@pytest.mark.parametrize("full", ["free", "locked"])
def test_without_host_memory_weights_stay_and_it_is_said(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, full: str
) -> None:
    """The system would kill the process for memory that it had on the card."""
    weight = _weight(machine, 100)
    if full == "free":
        monkeypatch.setattr(offload, "free_memory", lambda: 1 << 20)
    else:
        machine.card.hosted.capacity = 100
    Offload(_frozen(weight), True)(machine.card)
    assert machine.card.host_view(weight) is None
    assert "stay on" in caplog.text


def test_weights_go_before_their_engine_comes(machine: Machine) -> None:
    """Both at once is what does not fit."""
    weight = _weight(machine, 1000)
    held: list[int] = []

    def before_load(card: Any) -> None:
        assert not machine.engines
        Offload(_frozen(weight), True)(card)
        held.append(machine.memory.used)

    machine.card.cached = True
    run = runner(machine, doubling(), before_load=before_load)
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)
    assert held == [x.nbytes]
    assert not machine.card.cached, "TensorRT cannot use what PyTorch keeps"


def test_weights_stay_for_an_engine_that_cannot_run(machine: Machine) -> None:
    """PyTorch answers in its place, and would read them over the bus."""
    weight = _weight(machine, 1000)
    bits = int(real.EngineInvalidityDiagnostics.UNSUPPORTED_CC)
    run = runner(machine, doubling(bits=bits), before_load=Offload(_frozen(weight), True))
    with pytest.raises(RuntimeFailure):
        run([machine.tensor(torch.randn(2, 3))])
    assert machine.card.host_view(weight) is None


def test_a_module_goes_there_and_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model larger than the card could not be compiled; in PyTorch it would stay slow."""
    monkeypatch.setattr(offload, "card_of", lambda device: machine.card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    x = torch.randn(3, 8)
    want, held = model(x), model[0].weight.data
    size = sum(item.nbytes for item in (*model.parameters(), *model.buffers()))
    assert singlecard.offload_weights(model, "cpu") == size
    torch.testing.assert_close(model(x), want)
    assert held.data_ptr() != model[0].weight.data_ptr()
    assert move_to_card([*model.parameters(), *model.buffers()], machine.card) == size
    torch.testing.assert_close(model(x), want)


def test_without_a_card_nothing_is_offloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An assertion from inside of PyTorch would not say what to do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = nn.Linear(4, 4)
    with pytest.raises(RuntimeFailure, match="no CUDA GPU .* Leave the model on the CPU"):
        singlecard.offload_weights(model)
    assert singlecard.restore_weights(model) == 0
