"""Counts, and what follows from them."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.check import check, refuse


@pytest.mark.parametrize("kind", (torch.int64, torch.int32), ids=str)
def test_repeats_that_the_model_computes(kind: torch.dtype) -> None:
    """Speech synthesis stretches each phoneme by its own duration, to a length that is known."""
    x, repeats = torch.randn(2, 5, 3), torch.tensor([2, 0, 3, 1, 0], dtype=kind)
    check(lambda x, n: torch.repeat_interleave(x, n + 1, 1, output_size=11), x, repeats, build=True)
    check(lambda n: torch.repeat_interleave(n, output_size=6), repeats)


def test_repeats_beyond_what_is_compared_stay_in_pytorch() -> None:
    """Each repeat is held against each place: more of them would fill the card."""
    repeats = torch.ones(5000, dtype=torch.int64)
    reason = refuse(lambda n: torch.repeat_interleave(n, output_size=5000), repeats)
    assert "output_size" in reason and "25000000" in reason
