"""The bits of integers: hashes, masks, packed flags. One wrong bit is another token or row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.lowering.check import check, refuse


def _integers(dtype: torch.dtype) -> torch.Tensor:
    limits = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(1)
    some = torch.randint(limits.min, limits.max, (70,), dtype=dtype, generator=generator)
    return torch.cat([some, torch.tensor([0, 1, -1, limits.min, limits.max], dtype=dtype)])


BITWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "the lowest byte": lambda x, y: x & 0xFF,
    "all but the lowest bits": lambda x, y: x & -8,
    "a number first": lambda x, y: torch.bitwise_or(6, x),
    "truth values with integers": lambda x, y: (x > 0) ^ y,
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("name", BITWISE)
def test_bits_of_integers(name: str, dtype: torch.dtype) -> None:
    x = _integers(dtype)
    check(BITWISE[name], x, x.flip(0), build=dtype == torch.int64)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_shifts_out_of_range_are_pytorchs(dtype: torch.dtype) -> None:
    """A negative shift, or one as long as the number, leaves nothing or the sign."""
    x = _integers(dtype)
    shifts = (torch.arange(len(x)) - 5).to(dtype)
    check(lambda x, y: (x << y, x >> y, x << 3, x >> 2), x, shifts, build=True)


def test_many_elements_stay_in_pytorch() -> None:
    """64 numbers for each element would not fit into memory."""
    x = torch.ones(2**19, dtype=torch.int64)
    assert "got 33554432" in refuse(lambda x, y: x ^ y, x, x)
