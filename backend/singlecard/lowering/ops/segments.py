"""Reductions over ranges of one axis whose lengths are values, as ragged batches have them."""

from __future__ import annotations

import math
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Elements times ranges: each element is held against each range.
MOST_PAIRS = 2**24

#: What each reduction is in TensorRT, and what it begins with.
_KINDS = {
    "sum": ("SUM", 0.0),
    "mean": ("SUM", 0.0),
    "prod": ("PROD", 1.0),
    "max": ("MAX", -math.inf),
    "min": ("MIN", math.inf),
}


def _bounds(call: Call) -> Any:
    lengths = call.values["lengths"]
    return call.values["offsets"] if lengths is None else lengths


def _pairs(call: Call) -> Any:
    data, bounds = call.values["data"], _bounds(call)
    if bounds is None:
        return "neither lengths nor offsets"
    if not all(isinstance(size, int) for size in (*data.shape, *bounds.shape)):
        return [list(data.shape), list(bounds.shape)]
    return data.numel() * bounds.shape[-1]


@lowers(aten.segment_reduce.default)
@accepts(
    dtype("data").floating,
    when(
        f"lengths or offsets have a known shape and make <= {MOST_PAIRS} pairs with elements",
        lambda call: isinstance(_pairs(call), int) and _pairs(call) <= MOST_PAIRS,
        _pairs,
    ),
)
def segment_reduce(
    net: Net,
    data: Tensor,
    reduce: str,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Number | None = None,
) -> Tensor:
    """Sum, mean, product, maximum or minimum of each range of one axis."""
    axis %= data.ndim
    start, end = _ends(net, lengths, offsets)
    place = net.iota(data.shape[axis])
    inside = net.binary("LESS", place, net.unsqueeze(end, end.ndim))
    begun = net.logical_not(net.binary("LESS", place, net.unsqueeze(start, start.ndim)))
    member = net.binary("AND", inside, begun)
    behind = [1] * (data.ndim - axis - 1)
    member = net.reshape(member, [*member.shape, *behind])
    operation, first = _KINDS[reduce]
    x = net.cast(data, torch.float32)
    kept = net.where(member, net.unsqueeze(x, axis), net.scalar(first, x.dtype))
    total = net.reduce(operation, kept, [axis + 1], False)
    if initial is not None:
        total = net.binary(operation, total, net.scalar(float(initial), x.dtype))
    if reduce == "mean":
        count = net.cast(net.sub(end, start), x.dtype)
        count = net.reshape(count, [*count.shape, *behind])
        some = net.binary("GREATER", count, net.scalar(0.0, x.dtype))
        none = net.scalar(math.nan if initial is None else float(initial), x.dtype)
        share = net.binary("DIV", total, net.binary("MAX", count, net.scalar(1.0, x.dtype)))
        total = net.where(some, share, none)
    return net.cast(total, data.dtype)


def _ends(net: Net, lengths: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return where each range begins and ends."""
    if lengths is not None:
        lengths = net.cast(lengths, torch.int64)
        end = net.cumulative(lengths, lengths.ndim - 1)
        return net.sub(end, lengths), end
    assert offsets is not None
    offsets, last = net.cast(offsets, torch.int64), offsets.ndim - 1
    count = offsets.shape[last] - 1
    return net.narrow(offsets, last, 0, count), net.narrow(offsets, last, 1, count)
