"""Weights that engines hold leave the card, and come back."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import tensorrt_rtx as real
import torch
from torch import fx, nn

import singlecard
from singlecard import host_memory
from singlecard.capture import program
from singlecard.errors import RuntimeFailure
from singlecard.runtime import offload
from singlecard.runtime.frozen import Frozen, following
from singlecard.runtime.offload import Offload, move_to_card, move_to_host, plain_tensors
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


def test_what_is_more_than_its_storage_is_left_alone(machine: Machine) -> None:
    """Moved, a conjugate would lose its sign and a quantized tensor its scale: a broken model."""
    values = machine.tensor(torch.randn(8))
    conjugate = nn.Parameter(torch.view_as_complex(values.view(4, 2)).conj())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    before = conjugate.detach().clone(), codes.dequantize()
    Offload(_frozen(conjugate, codes), True)(machine.card)
    assert move_to_host([conjugate, codes], machine.card, parts=True) == 0
    assert torch.equal(conjugate.detach(), before[0]) and torch.equal(codes.dequantize(), before[1])


def test_what_quantized_weights_are_made_of_comes_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay in host memory for ever, and the model slow in PyTorch."""
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    want, weight = model(torch.ones(1, 64)), model[0].weight
    codes = weight.qdata
    assert move_to_host([codes], machine.card) == 64 * 64
    machine.card.device = weight.device
    moved = move_to_card(plain_tensors(model), machine.card)
    assert moved == 64 * 64 and machine.card.host_view(codes) is None
    torch.testing.assert_close(model(torch.ones(1, 64)), want)


def test_weights_come_back_although_a_compiled_graph_reads_them(machine: Machine) -> None:
    """A graph that once ran in PyTorch would keep the whole model in host memory."""
    weight = _weight(machine, 8)
    values = weight.detach().clone()
    move_to_host([weight], machine.card)
    held = weight.detach()
    assert move_to_card([weight], machine.card) == 32
    assert machine.card.host_view(weight) is None and machine.card.host_view(held) is not None
    assert torch.equal(weight.detach(), values) and torch.equal(held, values)


def test_a_thread_that_looks_while_weights_move_finds_them_unchanged(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would compile the model again, for minutes, because another thread loads an engine."""
    weight = _weight(machine, 8)
    frozen, found = _frozen(weight), []
    looker = threading.Thread(target=lambda: found.append(frozen.are_unchanged()))

    @contextlib.contextmanager
    def slow(moves: Any) -> Iterator[None]:
        with following(moves):
            looker.start()
            looker.join(timeout=0.2)  # it finds other memory than it knows of
            yield

    monkeypatch.setattr(offload, "following", slow)
    move_to_host([weight], machine.card)
    looker.join()
    assert found == [True]


def test_the_host_reads_what_the_card_has_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were just changed on the card would go into an engine half old, half new."""
    weight, stream = torch.zeros(4), mock.Mock()
    monkeypatch.setattr(host_memory, "host_view", lambda tensor: tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    assert host_memory.on_cpu(weight).data_ptr() == weight.data_ptr()
    stream.synchronize.assert_called_once_with()


def test_a_build_behind_the_model_copies_weights_in_host_memory_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are read where they lie: written to meanwhile, they would get into the cached engine."""
    there, hosted = torch.empty(4, device="meta"), torch.ones(4)
    view = lambda tensor: hosted if tensor.is_meta else None  # noqa: E731
    monkeypatch.setattr(host_memory, "host_view", view)
    monkeypatch.setattr(program, "host_view", view)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: mock.Mock())
    graph = fx.Graph()
    graph.output(())
    captured = program.Program(fx.GraphModule({}, graph), (), {}, (), ())
    captured.module.register_buffer("weight", there)
    captured.copy_constants()
    hosted.zero_()
    assert torch.equal(captured.module.weight, torch.ones(4))  # type: ignore[arg-type]
