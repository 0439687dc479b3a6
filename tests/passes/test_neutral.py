"""Constants that change nothing are dropped, unless they change the type or the shape."""

from __future__ import annotations

import torch
from torch import nn

from tests.graphs import fired, simplified, targets


class Shifted(nn.Module):
    """x + shift, x * factor."""

    def __init__(self, shift: torch.Tensor, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("factor", factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.shift) * self.factor


def test_zero_and_one_are_dropped() -> None:
    """Fresh norms add zero and multiply by one: two constants and two ops for nothing."""
    program = simplified(Shifted(torch.zeros(4), torch.ones(4)), torch.randn(2, 4))
    assert targets(program) == ["aten.relu.default"]


def test_zero_bias_is_dropped() -> None:
    """A zero bias keeps the builder from joining projections."""
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.bias)
    program = simplified(layer, torch.randn(2, 4))
    assert "drop_zero_bias" in fired(program)


def test_one_odd_element_keeps_it() -> None:
    """One element that is not neutral is enough to change an answer."""
    shift, factor = torch.zeros(4), torch.ones(4)
    shift[3], factor[0] = 1e-30, -1
    program = simplified(Shifted(shift, factor), torch.randn(2, 4))
    assert targets(program) == ["aten.add.Tensor", "aten.relu.default", "aten.mul.Tensor"]


def test_broadcasting_zero_stays() -> None:
    """Adding a zero of a larger shape repeats x: without it the output has another shape."""
    program = simplified(Shifted(torch.zeros(3, 1, 4), torch.ones(1)), torch.randn(2, 4))
    assert "aten.add.Tensor" in targets(program)


def test_promoting_zero_stays() -> None:
    """Adding a zero of a wider type changes the type of a user's output."""
    program = simplified(Shifted(torch.zeros(4), torch.ones(4)), torch.randn(2, 4).half())
    assert "aten.add.Tensor" in targets(program)


def test_zero_factor_and_one_shift_stay() -> None:
    """x + 1 and x * 0 are not neutral."""
    program = simplified(Shifted(torch.ones(4), torch.zeros(4)), torch.randn(2, 4))
    assert len(targets(program)) == 3
