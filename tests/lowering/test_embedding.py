"""Look-ups in tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check, refuse, weight


def test_embedding() -> None:
    """Every language model begins with it; a padding index changes nothing in inference."""
    rows = torch.tensor([[0, 6], [3, 3]])
    check(lambda i, w: F.embedding(i, w, padding_idx=0), rows, weight(7, 4))
    check(lambda i, w: F.embedding(i, w), torch.tensor(3, dtype=torch.int32), weight(7, 4))


@pytest.mark.parametrize("mode", ("sum", "mean", "max"))
@pytest.mark.parametrize("padding", (None, 2))
def test_bags(mode: str, padding: int | None) -> None:
    """Recommenders sum rows by bag; a bag may be empty, and gives zero."""
    rows, starts = torch.tensor([1, 2, 4, 5, 4, 2]), torch.tensor([0, 3, 3])

    def bags(i: torch.Tensor, o: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.embedding_bag(i, w, o, mode=mode, padding_idx=padding)

    check(bags, rows, starts, weight(7, 4), build=padding is None)


def test_weighted_bags_of_equal_length() -> None:
    """Two axes of indices are one bag a row."""
    rows, share = torch.tensor([[1, 2], [4, 4]]), torch.rand(2, 2)
    check(
        lambda i, s, w: F.embedding_bag(i, w, mode="sum", per_sample_weights=s),
        rows,
        share,
        weight(7, 4),
    )
    ends = torch.tensor([0, 1, 3])
    check(
        lambda i, o, w: F.embedding_bag(i, w, o, mode="sum", include_last_offset=True),
        rows.flatten()[:3],
        ends,
        weight(7, 4),
    )


def test_large_bags_stay_in_pytorch() -> None:
    """Bags are found by comparing each with each row."""
    rows, starts = torch.zeros(3000, dtype=torch.int64), torch.arange(0, 3000)
    reason = refuse(lambda i, o, w: F.embedding_bag(i, w, o), rows, starts, weight(7, 4))
    assert "<= 16777216" in reason and "36000000" in reason


def test_one_hot() -> None:
    """Class masks of mixtures of experts; PyTorch checks the classes, an engine cannot."""
    check(lambda i: F.one_hot(i, 5) * 2, torch.tensor([[0, 4], [3, 3]]), build=True)
