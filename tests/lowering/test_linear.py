"""Products of integers are exact: counts, one-hot look-ups and graph distances are made of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.lowering.check import check, refuse

PRODUCTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mm": lambda x, y: x[0] @ y[0],
    "bmm": torch.bmm,
    "broadcast": lambda x, y: x[None] @ y[:1],
    "a vector": lambda x, y: x @ y[0, :, 0],
    "linear": lambda x, y: torch.nn.functional.linear(x, y[0].T.contiguous(), y[0, 0]),
    "addmm": lambda x, y: torch.addmm(y[0, 0], x[0], y[0], beta=2, alpha=3),
    "baddbmm": lambda x, y: torch.baddbmm(y[:, :1], x, y, beta=2, alpha=3),
    "addbmm": lambda x, y: torch.addbmm(y[0, :1], x, y),
    "einsum": lambda x, y: torch.einsum("bij,bjk->ik", x, y),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_integers(name: str) -> None:
    """Beyond 2**24 float32 would round; sums wrap around as PyTorch's do."""
    x = torch.arange(24).reshape(2, 3, 4) * 987654321 - 2**33
    check(PRODUCTS[name], x, torch.arange(40).reshape(2, 4, 5) * 123456789, build=True)


def test_large_products_of_integers_stay_in_pytorch() -> None:
    """Each term is an element of its own: a large product would not fit into memory."""
    x = torch.ones(300, 300, dtype=torch.int64)
    assert "got 27000000" in refuse(torch.mm, x, x)
