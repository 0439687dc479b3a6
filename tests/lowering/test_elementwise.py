"""Arithmetic at the edges of what floats hold."""

from __future__ import annotations

import torch

from tests.lowering.check import check


def test_length_of_an_unbounded_side() -> None:
    """Infinitely long is infinitely long, whatever the other side may be."""
    inf, nan = float("inf"), float("nan")
    x, y = torch.tensor([inf, nan, -inf, nan, 3.0, 2e38]), torch.tensor([nan, inf, 1, 1, 4.0, 1e38])
    check(torch.hypot, x, y, build=True)
