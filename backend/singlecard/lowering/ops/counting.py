"""Counting how many elements have a property."""

from __future__ import annotations

import math
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, arg, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Elements times ranges: each is compared with each.
MOST_PAIRS = 2**24


def _few_pairs() -> Condition:
    def pairs(call: Call) -> Any:
        x = call.values["self"]
        known = all(isinstance(size, int) for size in x.shape)
        # Else comparison and sum are one kernel, and hold no pairs.
        return x.numel() * call.values["bins"] if known else 0

    return when(
        f"elements times bins <= {MOST_PAIRS}, or the shape varies",
        lambda call: pairs(call) <= MOST_PAIRS,
        pairs,
    )


@lowers(aten.histc.default)
@accepts(
    dtype("self").numeric,
    arg("min").known,
    arg("max").known,
    _few_pairs(),
)
def histc(net: Net, self: Tensor, bins: int = 100, min: Number = 0, max: Number = 0) -> Tensor:
    """How many elements fall into each of several ranges of equal width."""
    x = net.cast(net.reshape(self, [1, -1]), torch.float32)
    low, high = (net.scalar(float(value), torch.float32, 2) for value in (min, max))
    if min == max:
        low, high = _range(net, x) if min == 0 else (low, high)
        low, high = _widened(net, low, high)
    share = net.prod(net.sub(x, low), net.scalar(float(bins), torch.float32, 2))
    width = net.sub(high, low)
    place = net.unary("FLOOR", net.binary("DIV", share, width))
    place = net.binary("MIN", place, net.scalar(bins - 1.0, torch.float32, 2))
    over = net.binary("OR", net.binary("LESS", x, low), net.binary("GREATER", x, high))
    each = net.constant(torch.arange(bins, dtype=torch.float32)[:, None])
    hit = net.binary("AND", net.binary("EQUAL", place, each), net.logical_not(over))
    count = net.reduce("SUM", net.cast(hit, torch.int32), [1], False)
    return net.cast(count, net.result.dtype)


def _range(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (net.reduce(end, x, [0, 1], True) for end in ("MIN", "MAX"))
    return low, high


def _widened(net: Net, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return a range of one number with one more at each side, another as it is."""
    one, none = net.scalar(1.0, low.dtype, 2), net.scalar(0.0, low.dtype, 2)
    more = net.where(net.binary("EQUAL", low, high), one, none)
    return net.sub(low, more), net.sum(high, more)


def _mode_pairs(call: Call) -> Any:
    x = call.values["self"]
    if not all(isinstance(size, int) for size in x.shape):
        return list(x.shape)
    return x.numel() * (x.shape[call.values["dim"]] if x.ndim else 1)


@lowers(aten.mode.default)
@accepts(
    when(
        f"the shape is known and pairs of elements <= {MOST_PAIRS}",
        lambda call: isinstance(_mode_pairs(call), int) and _mode_pairs(call) <= MOST_PAIRS,
        _mode_pairs,
    )
)
def mode(net: Net, self: Tensor, dim: int = -1, keepdim: bool = False) -> list[Tensor]:
    """The most frequent element along one axis, of several the smallest, and its last index."""
    if not self.ndim:
        return [self, net.scalar(0, torch.int64)]
    axis = dim % self.ndim
    x = net.cast(self, torch.int32) if self.dtype == torch.bool else self
    alike = net.binary("EQUAL", net.unsqueeze(x, axis), net.unsqueeze(x, axis + 1))
    count = net.reduce("SUM", net.cast(alike, torch.int32), [axis + 1], False)
    count = net.binary("MAX", count, net.scalar(1, torch.int32))  # NaN is not equal to itself
    best = net.binary("EQUAL", count, net.reduce("MAX", count, [axis], True))
    floating = x.dtype.is_floating_point
    largest = math.inf if floating else torch.iinfo(x.dtype).max
    number = best
    if floating:
        number = net.binary("AND", best, net.logical_not(net.unary("ISNAN", x)))
    found = net.where(number, x, net.scalar(largest, x.dtype))
    found = net.reduce("MIN", found, [axis], True)
    chosen = net.binary("AND", number, net.binary("EQUAL", x, found))
    if floating:  # nothing but NaN
        some = net.reduce("MAX", net.cast(number, torch.int32), [axis], True)
        none = net.binary("EQUAL", some, net.scalar(0, torch.int32))
        found = net.where(none, net.scalar(math.nan, x.dtype), found)
        chosen = net.binary("OR", chosen, none)
    places = net.reshape(net.iota(x.shape[axis]), [-1, *[1] * (x.ndim - axis - 1)])
    index = net.where(chosen, places, net.scalar(-1, torch.int64))
    results = [net.cast(found, self.dtype), net.reduce("MAX", index, [axis], True)]
    return results if keepdim else [net.squeeze(item, [axis]) for item in results]


def _places(call: Call) -> Any:
    x, size = call.values["self"], call.values["size"]
    known = all(isinstance(extent, int) for extent in (*x.shape, size))
    return x.numel() * size if known else [*x.shape, size]


@lowers(aten.nonzero_static.default)
@accepts(
    when(
        f"shapes are known and elements times places <= {MOST_PAIRS}",
        lambda call: isinstance(_places(call), int) and _places(call) <= MOST_PAIRS,
        _places,
    )
)
def nonzero_static(net: Net, self: Tensor, size: int, fill_value: int = -1) -> Tensor:
    """The places of a known number of elements that are not zero, then a number."""
    marked = net.cast(net.reshape(net.cast(self, torch.bool), [1, -1]), torch.int64)
    passed = net.cumulative(marked, 1)
    wanted = net.constant(torch.arange(size)[:, None])
    before = net.logical_not(net.binary("GREATER", passed, wanted))
    place = net.reduce("SUM", net.cast(before, torch.int64), [1], True)
    total = net.reduce("SUM", marked, [1], True)
    columns, behind = [], math.prod(self.shape)
    for extent in self.shape:
        behind //= extent
        whole = net.binary("FLOOR_DIV", place, net.scalar(behind, torch.int64))
        columns.append(whole)
        place = net.sub(place, net.times(whole, behind))
    found = net.binary("LESS", wanted, total)
    return net.where(found, net.concat(columns, 1), net.scalar(fill_value, torch.int64))


def _repeated_pairs(call: Call) -> Any:
    pairs = (call.values["repeats"].shape[0], call.values["output_size"])
    return pairs[0] * pairs[1] if all(isinstance(size, int) for size in pairs) else pairs


@lowers(aten.repeat_interleave.Tensor)
@accepts(
    dtype("repeats").integral,
    when(
        f"output_size is given, and output_size times repeats <= {MOST_PAIRS}",
        lambda call: isinstance(_repeated_pairs(call), int) and _repeated_pairs(call) <= MOST_PAIRS,
        _repeated_pairs,
    ),
)
def repeat_interleave(net: Net, repeats: Tensor, output_size: int | None = None) -> Tensor:
    """Each place as often as it is to be repeated: how many places have ended before."""
    assert output_size is not None
    ends = net.unsqueeze(net.cumulative(repeats, 0), 0)
    places = net.constant(torch.arange(output_size).to(repeats.dtype).unsqueeze(1))
    ended = net.logical_not(net.binary("GREATER", ends, places))
    return net.reduce("SUM", net.cast(ended, net.result.dtype), [1], False)
