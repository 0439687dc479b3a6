"""What a compiled graph holds of its model once engines have the weights: nothing on the card."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard import recalled, session
from singlecard.errors import RuntimeFailure
from tests.backend.machine import NETWORKS, Evaluated, Machine
from tests.runtime.memory import HostCard, Memory

X = torch.ones(2, 4)


class Cut(nn.Module):
    """Two engines, and an op with a weight between them that stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.special.bessel_j0(self.first(x) + 1)
        return self.last(torch.special.bessel_j1(middle * self.shift))  # type: ignore[no-any-return]


class Empty:
    """An engine that answers with zeros, and holds nothing of the network."""

    def __init__(self, plan: Any, binding: Any, held: object, **settings: Any) -> None:
        self.outputs = binding.outputs

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return [torch.zeros(2, 8)] * self.outputs


class Failing(Empty):
    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        raise RuntimeFailure("no memory")


def _holders(tensor: Tensor) -> int:
    """Return how many tensors lie in the memory of one, it among them."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_compiled_graphs_hold_no_weights_beside_their_engines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A card would hold each weight twice, and moving the model's own away would free nothing."""
    monkeypatch.setattr(session, "EngineRunner", Empty)
    model = Cut().eval()
    call = machine.start(model, precision=precision, min_block_size=1)
    call(X)
    NETWORKS.clear()  # which the stand-in keeps
    gc.collect()
    held = {name: _holders(weight) for name, weight in model.named_parameters()}
    assert held.pop("shift") in (1, 2)  # the op that stays in PyTorch may read it where it is
    assert set(held.values()) == {1}


def test_a_recalled_graph_holds_no_weights(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start would need more memory than the first."""
    model = nn.Linear(4, 8).eval()
    machine.start(model)(X)
    monkeypatch.setattr(recalled, "EngineRunner", Empty)
    before = machine.captures
    call = machine.start(model)
    call(X)
    NETWORKS.clear()
    gc.collect()
    assert machine.captures == before
    assert [_holders(weight) for weight in model.parameters()] == [1, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parts_that_no_engine_runs_are_captured_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Weights were let go of: PyTorch would have nothing to answer with."""
    monkeypatch.setattr(session, "EngineRunner", Failing)
    model = Cut().eval()
    call = machine.start(model, precision=precision, min_block_size=1)
    tolerance = 1e-6 if precision == "fp32" else 2e-3
    for x in (X, torch.randn(2, 4)):
        torch.testing.assert_close(call(x), model(x), rtol=tolerance, atol=tolerance)


def test_parts_captured_again_read_the_weights_of_now(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of old weights is a wrong answer, whoever computes it."""
    fails: list[bool] = []

    class Sometimes(Evaluated):
        def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
            if fails:
                raise RuntimeFailure("no memory")
            return super().__call__(values)

    monkeypatch.setattr(session, "EngineRunner", Sometimes)
    model = Cut().eval()
    call = machine.start(model, min_block_size=1)
    torch.testing.assert_close(call(X), model(X))
    model.first.weight.data = torch.randn(8, 4)
    fails.append(True)
    torch.testing.assert_close(call(X), model(X))


@pytest.mark.parametrize("inference", [False, True])
def test_a_moved_model_is_not_compiled_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, inference: bool
) -> None:
    """Dynamo's guards and ours look at weights at each call: a move is no change of theirs."""
    card = HostCard(Memory())

    class Moving(Evaluated):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.before_load = settings["before_load"]

        def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
            self.before_load(card)
            return super().__call__(values)

    monkeypatch.setattr(session, "EngineRunner", Moving)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).eval()
    with torch.inference_mode(inference), torch.no_grad():
        want = model(X)
        call = machine.start(model, precision="fp16", offload_weights=True)
        before = singlecard.counters()
        for _ in range(3):
            torch.testing.assert_close(call(X), want, rtol=2e-3, atol=2e-3)
        counted = singlecard.counters() - before
        assert (counted.hits, counted.builds) == (0, 1)
        assert all(card.host_view(weight) is not None for weight in model.parameters())
        assert machine.captures == 1
        torch.testing.assert_close(model(X), want)
        model[0].weight.data = torch.randn(8, 4)
        torch.testing.assert_close(call(X), model(X), rtol=2e-3, atol=2e-3)
