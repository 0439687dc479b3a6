"""Shortest programs of what generated ones found, so that it stays mended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz.checking import check


class RangeOfAFloat(nn.Module):
    """A guard of PyTorch's on a size that was a float on the way, which no range was found for."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.interpolate(x, scale_factor=0.5, mode="area"), x.int().unflatten(-2, (-1, 1))


class NormBehindAPiece(nn.Module):
    """PyTorch's kernel wants the copy that engines have no use for, where both stay in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.norm, self.last = nn.Linear(16, 32), nn.GroupNorm(1, 9), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        piece, _ = self.wide(x).chunk(2, dim=-1)
        return self.last(self.norm(piece))


class MaskOfAnotherType(nn.Module):
    """PyTorch's kernel misreads a float32 mask beside float64, and a rule was blamed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.first(x).unflatten(-1, (1, 8)).transpose(1, 2) for _ in range(3))
        length = x.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.last(mixed.transpose(1, 2).flatten(2))


FOUND: dict[type[nn.Module], tuple[Sequence[Callable[[], Any]], dict[str, Any], dict[str, Any]]] = {
    RangeOfAFloat: (
        (lambda: (torch.randn(2, 3, 12, 7).double(),), lambda: (torch.randn(3, 3, 6, 8).double(),)),
        {},
        {"direct": False},
    ),
    NormBehindAPiece: (
        (lambda: (torch.randn(3, 9, 16),),),
        {
            "exclude_modules": ("wide",),
            "exclude_ops": ("aten.native_group_norm", "aten.split.Tensor"),
        },
        {"direct": True},
    ),
    MaskOfAnotherType: (
        (lambda: (torch.randn(4, 16, 8),), lambda: (torch.randn(3, 7, 8),)),
        {},
        {"direct": False, "dynamic": True},
    ),
}


@pytest.mark.parametrize("model", FOUND, ids=lambda model: model.__name__)
def test_found(model: type[nn.Module]) -> None:
    calls, options, ways = FOUND[model]
    given = {"execution": "reference", "min_block_size": 1, **options}
    check(model, calls, options=given, **{"dynamic": None, "again": False, **ways})
