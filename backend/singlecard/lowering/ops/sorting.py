"""Ops that put elements in order, or find where they belong in one.

TensorRT's top-k orders NaN as it likes, and may give equal elements in any order. Where PyTorch
promises an order of equal elements, ranks are counted instead.
"""

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

#: Largest k of TensorRT's top-k layer (measured with TensorRT-RTX 1.7.1: 3841 is refused).
MOST_SORTED = 3840

#: Elements that comparing each with each may make, where ranks are counted.
MOST_PAIRS = 2**24


def _length(call: Call) -> Any:
    x = call.values["self"]
    return x.shape[call.values["dim"]] if x.ndim else 1


def _sorted_pairs(call: Call) -> Any:
    """Return the comparisons that sorting a long axis in parts makes at once."""
    x = call.values["self"]
    if not all(isinstance(size, int) for size in x.shape):
        return f"shape {list(x.shape)}"
    count, length = parts_of(_length(call))
    return math.prod(x.shape) * max(count, length)


def parts_of(length: int) -> tuple[int, int]:
    """Return into how many parts of which length, a power of two, a long axis is cut."""
    part = 1 << math.ceil(math.log2(length) / 2)
    return -(-length // part), part


_SORTED = when(
    f"the sorted axis has a known extent <= {MOST_SORTED}, or makes <= {MOST_PAIRS} comparisons",
    lambda call: (
        isinstance(_length(call), int)
        and (
            _length(call) <= MOST_SORTED
            or (isinstance(_sorted_pairs(call), int) and _sorted_pairs(call) <= MOST_PAIRS)
        )
    ),
    lambda call: (
        f"an extent of {_length(call)} and {_sorted_pairs(call)} comparisons"
        if isinstance(_length(call), int)
        else _length(call)
    ),
)


def sorted_at_most(limit: int) -> Condition:
    """The axis that is put in order is known to be no longer than what the layer takes."""
    return when(
        f"the sorted axis has a known extent <= {limit}",
        lambda call: isinstance(_length(call), int) and _length(call) <= limit,
        _length,
    )


def _rank_pairs(call: Call) -> Any:
    x = call.values["self"]
    known = all(isinstance(size, int) for size in x.shape)
    return math.prod(x.shape) * _length(call) if known else list(x.shape)


_COUNTABLE = when(
    f"comparisons of elements <= {MOST_PAIRS}, where the order of equal ones is promised",
    lambda call: (
        not call.values["stable"]
        or (isinstance(_rank_pairs(call), int) and _rank_pairs(call) <= MOST_PAIRS)
        or (isinstance(_sorted_pairs(call), int) and _sorted_pairs(call) <= MOST_PAIRS)
    ),
    _sorted_pairs,
)


@lowers(aten.topk.default)
@accepts(arg("k").known, arg("k").at_most(MOST_SORTED))
def topk(
    net: Net, self: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> list[Tensor]:
    """The k largest or smallest elements along one axis, in order, and their indices."""
    return list(extremes(net, self, k, dim, largest))


@lowers(aten.sort.default)
@accepts(_SORTED)
def sort(net: Net, self: Tensor, dim: int = -1, descending: bool = False) -> list[Tensor]:
    """All elements along one axis in order, and their indices."""
    length = self.shape[dim] if self.ndim else 1
    if length > MOST_SORTED:
        return put_in_order(net, self, dim % self.ndim, descending)
    return list(extremes(net, self, length, dim, descending))


@lowers(aten.sort.stable)
@accepts(_SORTED, _COUNTABLE)
def sort_stable(
    net: Net, self: Tensor, stable: bool | None, dim: int = -1, descending: bool = False
) -> list[Tensor]:
    """All elements along one axis in order, and their indices; equal ones keep theirs."""
    if not stable or not self.ndim:
        return sort(net, self, dim, descending)
    return put_in_order(net, self, dim % self.ndim, descending)


def put_in_order(net: Net, x: Tensor, axis: int, descending: bool) -> list[Tensor]:
    """Return elements along one axis in order, equal ones in theirs, and their indices."""
    whole = x.shape[axis] if x.is_static else 0
    if whole * math.prod(x.shape) > MOST_PAIRS:
        last = net.transpose(x, axis, -1)
        ranks = net.transpose(_ranks_in_parts(net, last, descending), axis, -1)
    else:
        ranks = _ranks(net, x, axis, descending)
    sizes = net.sizes(x)
    places = net.reshape(net.iota(sizes[axis]), [-1, *[1] * (x.ndim - axis - 1)])
    places = net.expand(places, sizes)
    order = net.scatter(places, ranks, places, "ELEMENT", axis)
    values = net.scatter(x, ranks, x, "ELEMENT", axis)
    return [values, order]


def _ranks_in_parts(net: Net, x: Tensor, descending: bool) -> Tensor:
    """Count, for each element of the last axis, those before it: of its part, and of each other.

    Parts are put in order by counting. In every other part, the place of an element is found by
    halving; of equal elements, those of earlier parts come first.
    """
    x = net.cast(x, torch.int32) if x.dtype == torch.bool else x
    shape, length = x.shape, x.shape[-1]
    count, part = parts_of(length)
    rows = math.prod(shape[:-1])
    x = net.reshape(x, [rows, length])
    if missing := count * part - length:
        filling = net.scalar(_last(x.dtype, descending), x.dtype)
        x = net.concat([x, net.expand(filling, [rows, missing])], 1)
    parts = net.reshape(x, [rows, count, part])
    own = _ranks(net, parts, 2, descending)
    ordered = net.reshape(net.scatter(parts, own, parts, "ELEMENT", 2), [rows, count * part])
    one = net.reshape(x, [rows, count, part, 1])
    starts = torch.arange(count) * part
    mine = torch.arange(count)[:, None, None]
    earlier = net.constant((torch.arange(count) < mine)[None])
    passed = net.constant(torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    step = part // 2
    while True:
        place = net.sum(passed, net.constant(starts + max(step - 1, 0)))
        place = net.expand(place, [rows, count, part, count])
        flat = net.reshape(place, [rows, count * part * count])
        met = net.reshape(net.gather_mode(ordered, flat, "ELEMENT", 1), place.shape)
        after = net.logical_not(_precedes(net, one, met, descending))
        before = net.where(earlier, after, _precedes(net, met, one, descending))
        moved = net.sum(passed, net.constant(torch.full((1, 1, 1, 1), max(step, 1))))
        passed = net.where(before, moved, passed)
        if not step:
            break
        step //= 2
    here = net.constant((torch.arange(count) == mine)[None])
    passed = net.where(here, net.unsqueeze(own, 3), passed)
    ranks = net.reshape(net.reduce("SUM", passed, [3], False), [rows, count * part])
    return net.reshape(net.narrow(ranks, 1, 0, length), shape)


def _last(kind: torch.dtype, descending: bool) -> Number:
    """Return what comes after all other elements, or is equal to the last."""
    if kind.is_floating_point:
        return -math.inf if descending else math.nan
    limits = torch.iinfo(kind)
    return limits.min if descending else limits.max


def _ranks(net: Net, x: Tensor, axis: int, descending: bool) -> Tensor:
    """Count, for each element, those that come before it."""
    x = net.cast(x, torch.int32) if x.dtype == torch.bool else x
    length = x.shape[axis]
    one, other = net.unsqueeze(x, axis + 1), net.unsqueeze(x, axis)
    before = _precedes(net, other, one, descending)
    after = _precedes(net, one, other, descending)
    earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
    earlier = earlier.reshape([length, length, *[1] * (x.ndim - axis - 1)])
    tied = net.binary("AND", net.logical_not(after), net.constant(earlier))
    first = net.cast(net.binary("OR", before, tied), torch.int32)
    return net.cast(net.reduce("SUM", first, [axis + 1], False), torch.int64)


def _precedes(net: Net, a: Tensor, b: Tensor, descending: bool) -> Tensor:
    """Tell where ``a`` must come before ``b``. NaN is larger than all numbers."""
    if descending:
        a, b = b, a
    less = net.binary("LESS", a, b)
    if not a.dtype.is_floating_point:
        return less
    number = net.logical_not(net.unary("ISNAN", a))
    return net.binary("OR", less, net.binary("AND", number, net.unary("ISNAN", b)))


def extremes(net: Net, x: Tensor, k: int, dim: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the k largest or smallest elements along one axis, in order, and their indices."""
    if not x.ndim:
        return x, net.scalar(0, torch.int64)
    numbers = net.cast(x, torch.int32) if x.dtype == torch.bool else x
    values, indices = net.topk(numbers, k, dim, largest)
    return net.cast(values, x.dtype), indices


@lowers(aten.kthvalue.default)
@accepts(arg("k").known, arg("k").at_most(MOST_SORTED))
def kthvalue(net: Net, self: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> list[Tensor]:
    """The k-th smallest element along one axis, and its index."""
    found = extremes(net, self, k, dim, False)
    if not self.ndim:
        return list(found)
    last = [net.narrow(item, dim, k - 1, 1) for item in found]
    return last if keepdim else [net.squeeze(item, [dim]) for item in last]


def _search_pairs(places: str, values: str) -> Condition:
    """Every value is held against every boundary of its row."""

    def pairs(call: Call) -> Any:
        boundaries, wanted = call.values[places], call.values[values]
        shapes = [*boundaries.shape, *getattr(wanted, "shape", ())]
        if not all(isinstance(size, int) for size in shapes):
            return shapes
        return boundaries.shape[-1] * math.prod(getattr(wanted, "shape", ()))

    return when(
        f"shapes are known and pairs of values and boundaries <= {MOST_PAIRS}",
        lambda call: isinstance(pairs(call), int) and pairs(call) <= MOST_PAIRS,
        pairs,
    )


@lowers(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
@accepts(dtype("sorted_sequence").numeric, _search_pairs("sorted_sequence", "self"))
def searchsorted(
    net: Net,
    sorted_sequence: Tensor,
    self: Tensor | Number,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """How many elements of a sorted row come before each value."""
    if sorter is not None:
        sorted_sequence = net.gather_mode(sorted_sequence, sorter, "ELEMENT", -1)
    return _count_before(net, sorted_sequence, self, right or side == "right")


@lowers(aten.bucketize.Tensor, aten.bucketize.Scalar)
@accepts(dtype("boundaries").numeric, _search_pairs("boundaries", "self"))
def bucketize(
    net: Net,
    self: Tensor | Number,
    boundaries: Tensor,
    out_int32: bool = False,
    right: bool = False,
) -> Tensor:
    """How many boundaries come before each value."""
    return _count_before(net, boundaries, self, right)


def _count_before(net: Net, row: Tensor, value: Tensor | Number, right: bool) -> Tensor:
    row, wanted = net.promote(row, value)
    if isinstance(value, Tensor):
        wanted = net.unsqueeze(wanted, -1)
        if row.ndim > 1:
            row = net.unsqueeze(row, -2)
    # Like PyTorch's search, which goes on past whatever is not known to be at or beyond a value.
    reached = net.binary("GREATER", row, wanted)
    if not right:
        reached = net.binary("OR", reached, net.binary("EQUAL", row, wanted))
    passed = net.cast(net.logical_not(reached), torch.int32)
    count = net.reduce("SUM", passed, [passed.ndim - 1], False)
    return net.cast(count, net.result.dtype)
