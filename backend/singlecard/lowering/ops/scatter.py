"""Ops that write elements by index. Where PyTorch leaves open which of two wins, so do these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.indexing import flat_index
from singlecard.lowering.ops.sorted_writes import MOST_UPDATES, combine_in_order
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.scatter.src)
@accepts(dtype("index").integral)
def scatter(net: Net, self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """self, with elements along one axis replaced where an index of the same rank says."""
    if not self.ndim:
        one = [net.pad_rank(item, 1) for item in (self, index, src)]
        return net.squeeze(scatter(net, one[0], 0, one[1], one[2]), [0])
    index, src = net.pad_rank(index, self.ndim), net.pad_rank(src, self.ndim)
    for axis in range(src.ndim):
        if src.shape[axis] != index.shape[axis]:
            src = net.narrow(src, axis, 0, net.size(index, axis))
    return net.scatter(self, index, net.cast(src, self.dtype), "ELEMENT", dim)


@lowers(aten.scatter.value)
@accepts(dtype("index").integral)
def scatter_value(net: Net, self: Tensor, dim: int, index: Tensor, value: Number) -> Tensor:
    """self, with elements along one axis replaced by a number where an index says."""
    number = net.expand(net.scalar(value, self.dtype), net.sizes(index))
    return scatter(net, self, dim, index, number)


def _given(call: Call) -> list[Any]:
    return [index for index in call.values["indices"] if index is not None]


def _masks(call: Call) -> int:
    return sum(index.dtype == torch.bool for index in _given(call))


def _mask_takes_one_value(call: Call) -> bool:
    """A mask picks slices whose number depends on data: one value must do for all of them."""
    if not _masks(call):
        return True
    (mask,) = _given(call) if len(_given(call)) == 1 else (None,)
    if mask is None:
        return False
    values, place = call.values["values"], call.values["indices"].index(mask)
    slices = call.values["self"].ndim - mask.ndim
    if place:
        return bool(values.numel() == 1)
    return bool(values.ndim <= slices or values.shape[0] == 1)


#: Elements that pairs of places and updates may make, where each is held against each.
MOST_PAIRS = 2**24


def pairs_of(places: Any, updates: Any) -> Any:
    """Return the size of a comparison of every place with every update."""
    return math.prod([*places, *updates])


def _accumulation(call: Call) -> Any:
    """Return how many updates are put in order; 0 where each is held against each place.

    Where lengths vary, each is: the comparison and the sum are one kernel, and hold no pairs.
    """
    if not call.values["accumulate"] or _masks(call):
        return 0
    shapes = [value.shape for value in (call.values["self"], *_given(call))]
    if not all(isinstance(size, int) for shape in shapes for size in shape):
        return 0
    updates = torch.broadcast_shapes(*shapes[1:])
    return 0 if pairs_of(shapes[0], updates) <= MOST_PAIRS else updates.numel()


@lowers(aten.index_put.default)
@accepts(
    when(
        "a mask is the only index and one value is written",
        _mask_takes_one_value,
        lambda call: [str(index.dtype).removeprefix("torch.") for index in _given(call)],
    ),
    when(
        "there are few updates, where it accumulates: pairs of them and "
        f"places <= {MOST_PAIRS}, or updates <= {MOST_UPDATES}, or their number varies",
        lambda call: _accumulation(call) <= MOST_UPDATES,
        _accumulation,
    ),
)
def index_put(
    net: Net,
    self: Tensor,
    indices: Sequence[Tensor | None],
    values: Tensor,
    accumulate: bool = False,
) -> Tensor:
    """self, with elements at broadcast indices replaced, or added to."""
    given = [item for item in indices if item is not None]
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    if given[0].dtype == torch.bool:
        return _fill_mask(net, self, axes[0], given[0], values, accumulate)
    together = axes[-1] - axes[0] == len(axes) - 1
    rest = [axis for axis in range(self.ndim) if axis not in axes]
    order = list(range(self.ndim)) if together else axes + rest
    first = axes[0] if together else 0
    moved = net.permute(self, order)
    x, flat = flat_index(net, moved, range(first, first + len(axes)), given)
    sizes = net.sizes(x)
    picked = [*sizes[:first], *net.sizes(flat), *sizes[first + 1 :]]
    count = net.reshape(flat, [-1])
    length = net.size(count, 0)
    updates = net.reshape(net.expand(values, picked), [*sizes[:first], length, *sizes[first + 1 :]])
    shape: list[Size] = [1] * x.ndim
    shape[first] = length
    index = net.reshape(count, shape)
    if accumulate:
        written = reduce_into(net, x, first, index, updates, "SUM")
    else:
        written = net.scatter(x, net.expand(index, net.sizes(updates)), updates, "ELEMENT", first)
    whole = net.reshape(written, net.sizes(moved))
    return net.permute(whole, [order.index(axis) for axis in range(self.ndim)])


@lowers(aten.index_copy.default)
@accepts(dtype("index").integral)
def index_copy(net: Net, self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """self, with slices replaced by those of another tensor; no index is negative."""
    if not self.ndim:
        return net.reshape(source, [])
    shape: list[Size] = [1] * self.ndim
    shape[dim] = net.size(net.pad_rank(index, 1), 0)
    places = net.expand(net.reshape(index, shape), net.sizes(source))
    return net.scatter(self, places, source, "ELEMENT", dim)


def _fill_mask(
    net: Net, x: Tensor, place: int, mask: Tensor, values: Tensor, accumulate: bool
) -> Tensor:
    """Write or add one value, or one slice, wherever a mask over some axes is true."""
    behind = x.ndim - place - mask.ndim
    shape = [*net.sizes(mask), *[1] * behind]
    if values.ndim > behind:  # a leading extent of 1, for the slices that the mask picks
        values = net.reshape(values, net.sizes(values)[values.ndim - behind :])
    if accumulate:
        values = net.binary("OR" if x.dtype == torch.bool else "SUM", x, values)
    return net.where(net.reshape(mask, shape), values, x)


def reduce_into(
    net: Net,
    x: Tensor,
    axis: int,
    index: Tensor,
    updates: Tensor,
    operation: str,
    include_self: bool = True,
) -> Tensor:
    """Combine each element of ``x`` with the updates whose index names its place on one axis.

    TensorRT has no scatter that adds. Every place is held against every update, and what does not
    belong to it is replaced by the operation's neutral element: exact, for integers and NaN too.
    Where these are too many, updates that are slices are put in order first.
    """
    if x.dtype == torch.bool:  # TensorRT reduces numbers only
        x_, updates_ = net.cast(x, torch.int32), net.cast(updates, torch.int32)
        numbers = reduce_into(net, x_, axis, index, updates_, operation, include_self)
        return net.cast(numbers, torch.bool)
    plain = "SUM" if operation == "AVG" else operation
    if _is_long(x, axis, index, updates):
        line = net.reshape(net.cast(index, torch.int64), [index.shape[axis]])
        nothing = _neutral(plain, x.dtype)
        combined, count = combine_in_order(net, line, updates, axis, x.shape[axis], plain, nothing)
        shape: list[Size] = [1] * x.ndim
        shape[axis] = x.shape[axis]
        return _with_self(net, x, combined, net.reshape(count, shape), operation, include_self)
    sizes = net.sizes(x)
    places = net.reshape(net.iota(sizes[axis]), [-1, *[1] * (x.ndim - axis)])
    hits = net.binary("EQUAL", places, net.unsqueeze(net.cast(index, torch.int64), axis))
    neutral = net.scalar(_neutral(plain, x.dtype), x.dtype, x.ndim + 1)
    kept = net.where(hits, net.unsqueeze(updates, axis), neutral)
    combined = net.reduce(plain, kept, [axis + 1], False)
    if include_self and operation != "AVG":
        return net.binary(plain, x, combined)
    ones = net.cast(net.expand(hits, net.sizes(kept)), torch.int32)
    count = net.reduce("SUM", ones, [axis + 1], False)
    return _with_self(net, x, combined, count, operation, include_self)


def _is_long(x: Tensor, axis: int, index: Tensor, updates: Tensor) -> bool:
    """Tell whether each place held against each update would be too much, and need not be."""
    if not (x.is_static and index.is_static and updates.is_static):
        return False
    is_line = math.prod(index.shape) == index.shape[axis] == updates.shape[axis]
    return is_line and pairs_of([x.shape[axis]], updates.shape) > MOST_PAIRS


def _with_self(
    net: Net, x: Tensor, combined: Tensor, count: Tensor, operation: str, include_self: bool
) -> Tensor:
    """Combine what was written with what stood there; ``count`` says how much was written."""
    if include_self:
        combined = net.binary("SUM" if operation == "AVG" else operation, x, combined)
    if include_self and operation != "AVG":
        return combined
    if operation == "AVG":
        combined = _divided(net, combined, count, include_self)
    touched = net.binary("GREATER", count, net.scalar(0, torch.int32, x.ndim))
    return combined if include_self else net.where(touched, combined, x)


def _divided(net: Net, total: Tensor, count: Tensor, include_self: bool) -> Tensor:
    one = net.scalar(1, torch.int32, total.ndim)
    shares = net.sum(count, one) if include_self else net.binary("MAX", count, one)
    division = "DIV" if total.dtype.is_floating_point else "FLOOR_DIV"
    return net.binary(division, total, net.cast(shares, total.dtype))


def _neutral(operation: str, kind: torch.dtype) -> Number:
    if operation in ("SUM", "PROD"):
        return 0 if operation == "SUM" else 1
    if kind.is_floating_point:
        return -math.inf if operation == "MAX" else math.inf
    limits = torch.iinfo(kind)
    return limits.min if operation == "MAX" else limits.max
