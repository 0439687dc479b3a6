"""Distances between rows, and windows added back together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check


@pytest.mark.parametrize("p", (0.0, 1.0, 2.0, 3.0, float("inf")))
def test_distances(p: float) -> None:
    """Retrieval and clustering heads compare rows; equal rows have distance zero."""
    x, y = torch.randn(2, 4, 3), torch.randn(2, 5, 3)
    y[:, 0] = x[:, 0]
    check(lambda x, y: torch.cdist(x, y, p), x, y, build=p == 2.0)
    check(lambda x: F.pdist(x[0], p), x)


@pytest.mark.parametrize("p", (0.0, 1.0, 2.0, 3.0))
def test_distance_from_nan(p: float) -> None:
    """What is not known is no number of steps away."""
    x, y = torch.tensor([[float("nan"), 1.0], [0.3, 1.0]]), torch.tensor([[2.0, 1.0], [0.3, 1.0]])
    check(lambda x, y: torch.cdist(x, y, p), x, y)
    check(lambda x: F.pdist(x, p), x)


@pytest.mark.parametrize(
    "options",
    (
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": (3, 2), "stride": (1, 2), "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    ),
    ids=str,
)
def test_windows_and_back(options: dict[str, Any]) -> None:
    """Restoration models cut images into overlapping windows and add them up again."""
    x = torch.randn(2, 3, 8, 6)
    check(lambda x: F.fold(F.unfold(x, **options) * 2, (8, 6), **options), x, build=True)
