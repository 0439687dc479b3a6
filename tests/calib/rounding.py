"""Layers and inputs to round weights with, and what a grid is."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def correlated(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return inputs that lie near a space of few dimensions, as those of real layers do."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width // 4, width, generator=random)
    few = torch.randn(rows, width // 4, generator=random) @ mixed / (width // 4) ** 0.5
    return few + 0.1 * torch.randn(rows, width, generator=random)


def linear(inputs: int, outputs: int, **more: Any) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, **more).eval()


def is_on_grid(weight: torch.Tensor, block: int, codes: int, exact: bool = True) -> bool:
    """Tell whether each block of rows is whole multiples of its largest over some code."""
    blocks = weight.detach().double().reshape(-1, block)
    top = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    found = torch.zeros(len(blocks), dtype=torch.bool)
    for code in range(1, codes + 1):
        units = blocks / (top / code)
        far = (units - units.round()).abs().amax(1)
        found |= far < (1e-5 if exact else 0.05)
    return bool(found.all())
