"""Triangles of matrices."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.check import check


@pytest.mark.parametrize("diagonal", (0, -1, 2, 9))
@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
def test_keeps_one_side(diagonal: int, kind: torch.dtype) -> None:
    """Causal masks are triangles. What is cut off may be infinite and must still become zero."""
    x = torch.full((2, 4, 5), torch.inf) if kind.is_floating_point else torch.ones(2, 4, 5)
    check(lambda x: (x.tril(diagonal), x.triu(diagonal)), x.to(kind), build=diagonal == 0)
