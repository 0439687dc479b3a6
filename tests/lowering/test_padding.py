"""Elements added around a tensor, or cut off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
@pytest.mark.parametrize("sides", ((1, 2), (0, 3, 2, 1), (-1, 2, 0, -2, 1, 0)), ids=str)
def test_constant(sides: tuple[int, ...], kind: torch.dtype) -> None:
    """Vision models pad to whole windows, and crop by negative padding."""
    x = torch.randint(0, 9, (3, 4, 5)).to(kind)
    check(lambda x: (F.pad(x, sides), F.pad(x, sides, value=1)), x, build=True)


@pytest.mark.parametrize("mode", ("reflect", "replicate", "circular"))
@pytest.mark.parametrize("dims", (1, 2, 3))
def test_copies_of_what_is_there(mode: str, dims: int) -> None:
    """Style transfer, vocoders and panoramas: a seam at each border would show."""
    sides = [2, 1, 0, 3, 1, 1][: 2 * dims]
    check(lambda x: F.pad(x, sides, mode), torch.randn(2, 3, *[5] * dims), build=dims == 2)


def test_negative_sides_of_copies() -> None:
    """Cropping one side while the other grows."""
    for mode in ("reflect", "replicate"):
        check(lambda x, mode=mode: F.pad(x, (-1, 2), mode), torch.randn(2, 3, 5))
