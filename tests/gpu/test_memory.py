"""Memory of a real card: weights that make room for engines, stream, and take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import singlecard
from tests.gpu.test_engines import compiled, error
from tests.gpu.test_host_memory import MIB, taken, wide

pytestmark = pytest.mark.gpu


def test_weights_leave_the_card_when_their_engine_comes(tmp_path: Path) -> None:
    """The model and its engine would take the memory of both."""
    model = wide().cuda()
    x = torch.randn(4, 2048, device="cuda")
    want, before = model(x), taken()
    call = compiled(model, tmp_path, options={"offload_weights": True})
    assert error(call(x), want) < 5e-3
    assert taken() - before < 0  # 64 MiB went, an engine of 32 MiB and its scratch came
    built = singlecard.counters().builds
    singlecard.restore_weights(model)
    assert error(call(x), want) < 5e-3 and singlecard.counters().builds == built


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_budget_streams_weights(tmp_path: Path, share: float) -> None:
    """A model that is larger than its share of the card still answers."""
    model = wide()
    x = torch.randn(4, 2048)
    want = model(x)
    budget = int(32 * MIB * share)
    singlecard.offload_weights(model)
    before = taken()
    call = compiled(model, tmp_path, options={"memory_budget": budget})
    for _ in range(3):
        assert error(call(x.cuda()).cpu(), want) < 5e-3
    assert taken() - before < 32 * MIB + 24 * MIB * share


def test_two_models_take_turns_within_a_budget(tmp_path: Path) -> None:
    """Each fits, both do not: calls alternate, and the card never holds both."""
    models = [wide(4), wide(3)]
    x = torch.randn(4, 2048)
    wants = [model(x) for model in models]
    for model in models:
        singlecard.offload_weights(model)
    options: dict[str, Any] = {"memory_budget": 40 * MIB}
    calls = [
        compiled(model, tmp_path / str(at), options=options) for at, model in enumerate(models)
    ]
    most: list[int] = []
    before = taken()
    for _ in range(3):
        for call, want in zip(calls, wants, strict=True):
            result: Tensor = call(x.cuda()).cpu()
            assert error(result, want) < 5e-3
            most.append(taken() - before)
    assert max(most[2:]) < 32 * MIB + 24 * MIB, most
