"""Views of a tensor's memory."""

from __future__ import annotations

import torch

from tests.lowering.check import check, refuse


def test_overlapping_windows() -> None:
    """Longformer and older audio models cut windows by strides."""
    check(lambda x: x.as_strided((3, 4), (2, 1), 1) * 2, torch.arange(12.0).view(3, 4), build=True)
    # Of a permuted tensor the strides name places in memory, not in its order of axes.
    check(lambda x: (x * 2).mT.as_strided((5, 4), (2, 1)), torch.arange(12.0).view(3, 4))


def test_writes_by_strides() -> None:
    """The same places written to."""
    x, part = torch.zeros(3, 4), torch.rand(2, 2)
    check(lambda x, p: torch.as_strided_scatter(x, p, (2, 2), (5, 2), 1), x, part)


def test_memory_beyond_the_tensor_stays_in_pytorch() -> None:
    """An engine has no memory behind its tensors: reading there must not be attempted."""
    reason = refuse(lambda x: x[1:].as_strided((2, 2), (1, 2), 0), torch.arange(12.0).view(3, 4))
    assert "fills its memory" in reason and "[2, 4]" in reason
