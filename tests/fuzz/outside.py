"""Ops that no engine has: what PyTorch users bring along as custom kernels."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("fuzz::row_sums", mutates_args=())
def row_sums(x: Tensor) -> Tensor:
    """Sum the last axis, of memory that is read by its address as if it were contiguous."""
    return torch.as_strided(x, (x.numel(),), (1,)).reshape(x.shape).sum(-1)


@row_sums.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1])


@torch.library.custom_op("fuzz::halves", mutates_args=())
def halves(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Give two results, the second of which is transposed in memory."""
    return x * scale, (x / 2).transpose(0, -1).contiguous().transpose(0, -1)


@halves.register_fake
def _(x: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.transpose(0, -1).shape).transpose(0, -1)


@torch.library.custom_op("fuzz::grow", mutates_args=())
def grow(x: Tensor, count: int) -> Tensor:
    """Repeat the first axis as often as a number says."""
    return x.repeat(count, *([1] * (x.ndim - 1)))


@grow.register_fake
def _(x: Tensor, count: int) -> Tensor:
    return x.new_empty((x.shape[0] * count, *x.shape[1:]))


@torch.library.custom_op("fuzz::add_rows_", mutates_args=("target",))
def add_rows_(target: Tensor, other: Tensor) -> None:
    """Write into the first argument."""
    target.add_(other)


@add_rows_.register_fake
def _(target: Tensor, other: Tensor) -> None:
    return None


@torch.library.custom_op("fuzz::count_and_double", mutates_args=("counter",))
def count_and_double(x: Tensor, counter: Tensor) -> Tensor:
    """Write into one argument and give a result."""
    counter.add_(1)
    return x * 2


@count_and_double.register_fake
def _(x: Tensor, counter: Tensor) -> Tensor:
    return torch.empty_like(x)
