"""Tensors put together, or one into a part of another."""

from __future__ import annotations

import pytest
import torch

from tests.lowering.check import check


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
def test_joins(kind: torch.dtype) -> None:
    """Skip connections and caches are joined, of different types too: PyTorch promotes them."""
    x, y = torch.randint(0, 9, (2, 3)).to(kind), torch.rand(2, 3)
    check(lambda x, y: (torch.cat((x, y), -1), torch.cat((x, x, x))), x, y, build=True)
    check(lambda x, y: (torch.stack((x, y)), torch.stack((x, x), -1)), x, y)
    check(lambda x, y: (torch.hstack((x, y)), torch.dstack((x, y))), x, y)


def test_leaves_out_what_is_empty() -> None:
    """A key-value cache starts as an empty tensor: the first token would cost an engine."""
    x = torch.rand(2, 3)
    check(lambda x: torch.cat((x.new_empty(0), x, x), -1), x)
    check(lambda x: torch.cat((x.new_ones(2, 0).long(), x), 1) + 1, x)


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
def test_replaces_parts(kind: torch.dtype) -> None:
    """Writing into a slice of a buffer becomes these ops: a lost write is a lost token."""
    x = torch.randint(0, 9, (4, 5, 6)).to(kind)
    part = torch.randint(0, 9, (4, 2, 6)).to(kind)
    check(lambda x, p: x.slice_scatter(p, 1, 1, 3), x, part, build=True)
    check(lambda x, p: x.slice_scatter(p, 1, -2), x, part)
    check(lambda x, p: x.slice_scatter(p, 1, 0, 5, 3), x, part)
    check(lambda x, p: x.select_scatter(p[:, 0], 1, -1), x, part)
    check(lambda x, p: x.diagonal_scatter(p[0, 0, :4].expand(6, 4)), x, part)


def test_writes_into_a_buffer() -> None:
    """``y[:, 1:3] = x`` and friends, as models write them."""

    def write(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(4, 5)
        y[:, 1:3] = x
        y[0] = 7
        y[1:, -1] += x[1:, 0]
        return y

    check(write, torch.randn(4, 2))
