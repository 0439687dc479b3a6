"""float64 is computed in FP32 where the user says so, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import singlecard
from singlecard.errors import SinglecardError
from singlecard.report.verify import VerifyReport


class Mixed(nn.Module):
    """Casts, constants, a written buffer and a type that is asked for, all in float64."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8).double()
        self.register_buffer("count", torch.zeros(8, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        y = self.linear(x).relu()
        self.count.add_(y.sum(0))
        mean = y.to(torch.float32).mean(dtype=torch.float64)
        return y, mean + torch.full((), 0.1, dtype=torch.float64), x


def report(**options: object) -> VerifyReport:
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64)
    return singlecard.verify(Mixed().eval(), (x,), options={"min_block_size": 1, **options})


def test_without_the_option_it_stays_in_pytorch() -> None:
    """Who writes float64 wants its digits: losing them unasked is a wrong answer."""
    found = report()
    assert any("float64" in reason for _, reason in found.fallback)
    assert found.relative_l2 < 1e-12


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_with_the_option_it_is_lowered(precision: str) -> None:
    """A model that is float64 by accident would otherwise have no engine at all."""
    found = report(demote_float64=True, precision=precision)
    assert {op for op, _ in found.fallback} == {"aten._to_copy"}  # at both ends
    assert found.engines == 1
    assert found.mismatch is None  # types of the answers among them
    assert 1e-9 < found.relative_l2 < (1e-6 if precision == "fp32" else 5e-3)


def test_strict_still_tells_of_the_ends() -> None:
    """With strict=True nothing runs in PyTorch, not even a cast."""
    with pytest.raises(SinglecardError, match="float64"):
        report(demote_float64=True, strict=True)
