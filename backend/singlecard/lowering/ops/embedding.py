"""Look-ups in tables."""

from __future__ import annotations

import math
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.reduction import length
from singlecard.lowering.outputs import only_used
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Elements that comparing each bag with each row may make.
MOST_PAIRS = 2**24


@lowers(aten.embedding.default)
@accepts(dtype("indices").integral)
def embedding(net: Net, weight: Tensor, indices: Tensor, *_: object) -> Tensor:
    """Rows of a table."""
    return net.gather(weight, indices, 0)


@lowers(aten.embedding_renorm.default)
@accepts(dtype("self").floating, dtype("indices").integral, arg("self").static_shape)
def embedding_renorm(
    net: Net, self: Tensor, indices: Tensor, max_norm: float, norm_type: float
) -> Tensor:
    """A table whose rows, where they are looked up and longer than a limit, are shortened to it."""
    x = net.cast(self, torch.float32)
    norm = length(net, x, norm_type, [1], True)
    limit = net.scalar(max_norm, norm.dtype)
    scale = net.binary("DIV", limit, net.sum(norm, net.scalar(1e-7, norm.dtype)))
    rows = net.reshape(net.cast(indices, torch.int64), [-1, 1])
    none = net.constant(torch.zeros(self.shape[0], 1, dtype=torch.int32))
    one = net.expand(net.scalar(1, torch.int32), net.sizes(rows))
    used = net.cast(net.scatter(none, rows, one, "ELEMENT", 0), torch.bool)
    longer = net.binary("AND", used, net.binary("GREATER", norm, limit))
    return net.where(longer, net.cast(net.prod(x, scale), self.dtype), self)


def _pairs(call: Call) -> Any:
    shapes = [call.values[name].shape for name in ("indices", "offsets")]
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        return [list(shape) for shape in shapes]
    return math.prod(size for shape in shapes for size in shape) * call.values["weight"].shape[1]


@lowers(aten._embedding_bag_forward_only.default, aten._embedding_bag.default)
@accepts(
    dtype("indices").integral,
    dtype("weight").floating,
    only_used("the bags", [0]),
    arg("weight").static_shape,
    when(
        f"shapes are known and bags times rows times width <= {MOST_PAIRS}",
        lambda call: isinstance(_pairs(call), int) and _pairs(call) <= MOST_PAIRS,
        _pairs,
    ),
)
def embedding_bag(
    net: Net,
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> list[Tensor | None]:
    """Sum, mean or maximum of the rows of each bag; a bag without rows gives zero."""
    bags = offsets.shape[0] - (1 if include_last_offset else 0)
    start = net.cast(net.narrow(offsets, 0, 0, bags), torch.int64)
    place = net.iota(indices.shape[0])
    # A row belongs to the last bag that begins at or before it: to b, and not to b + 1.
    begun = net.logical_not(net.binary("LESS", place, net.unsqueeze(start, 1)))
    ended = net.constant(torch.zeros(1, indices.shape[0], dtype=torch.bool))
    later = net.concat([net.narrow(begun, 0, 1, bags - 1), ended], 0) if bags > 1 else ended
    if include_last_offset:
        end = net.cast(net.narrow(offsets, 0, 1, bags), torch.int64)
        later = net.logical_not(net.binary("LESS", place, net.unsqueeze(end, 1)))
    member = net.binary("AND", begun, net.logical_not(later))
    if padding_idx >= 0:
        pad = net.scalar(padding_idx, indices.dtype, 1)
        member = net.binary("AND", member, net.logical_not(net.binary("EQUAL", indices, pad)))
    rows = net.gather(weight, indices, 0)
    if per_sample_weights is not None:
        factors = net.cast(per_sample_weights, rows.dtype)
        rows = net.prod(rows, net.unsqueeze(factors, 1))
    return [_combined(net, member, rows, mode), None, None, None]


def _combined(net: Net, member: Tensor, rows: Tensor, mode: int) -> Tensor:
    if mode == 2:
        lowest = net.scalar(-math.inf, rows.dtype, 3)
        kept = net.where(net.unsqueeze(member, 2), net.unsqueeze(rows, 0), lowest)
        largest = net.reduce("MAX", kept, [1], False)
        return net.where(_is_filled(net, member), largest, net.scalar(0.0, rows.dtype, 2))
    share = net.cast(member, rows.dtype)
    total = net.matmul(share, rows)
    if mode == 0:
        return total
    count = net.reduce("SUM", share, [1], True)
    return net.binary("DIV", total, net.binary("MAX", count, net.scalar(1.0, rows.dtype, 2)))


def _is_filled(net: Net, member: Tensor) -> Tensor:
    count = net.reduce("SUM", net.cast(member, torch.int32), [1], True)
    return net.binary("GREATER", count, net.scalar(0, torch.int32, 2))
