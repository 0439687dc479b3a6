"""Ops that combine what is written to one place: scatter and index with a reduction."""

from __future__ import annotations

from typing import Any

import torch

from singlecard.capture.symbols import same_extents
from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.indexing import fitted, from_start
from singlecard.lowering.ops.scatter import MOST_PAIRS, pairs_of, reduce_into
from singlecard.lowering.ops.sorted_writes import MOST_UPDATES
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten

_OPERATIONS = {
    "sum": "SUM",
    "add": "SUM",
    "prod": "PROD",
    "multiply": "PROD",
    "mean": "AVG",
    "amax": "MAX",
    "amin": "MIN",
}


def _pairs(call: Call) -> Any:
    x, index = call.values["self"], call.values["index"]
    if not x.ndim:
        return 1
    if not _is_known(call):
        return 0  # the comparison and the reduction are one kernel, and hold no pairs
    places = [x.shape[call.values["dim"]]] if "dim" in call.values else x.shape
    return pairs_of(places, call.values.get("source", index).shape)


def _extents(call: Call) -> str:
    names = [name for name in ("self", "index", "src") if hasattr(call.values.get(name), "shape")]
    return ", ".join(f"{name} {list(call.values[name].shape)}" for name in names)


def takes_all(call: Call) -> bool:
    """Tell whether a scatter writes every element of its source, over whole slices of self."""
    x, index = call.values["self"], call.values["index"]
    source = call.values.get("src", index)
    if not x.ndim == index.ndim == source.ndim:
        return False
    axis = call.values["dim"] % max(x.ndim, 1)
    beside = [[*value.shape[:axis], *value.shape[axis + 1 :]] for value in (x, index)]
    return same_extents(*beside) and same_extents(index.shape, source.shape)


def _is_known(call: Call) -> bool:
    names = [name for name in ("self", "index", "source") if name in call.values]
    shapes = [size for name in names for size in call.values[name].shape]
    return all(isinstance(size, int) for size in shapes)


_INTEGRAL = dtype("index").integral

#: Of ops whose index has the rank of self.
FEW_PAIRS: tuple[Condition, ...] = (
    _INTEGRAL,
    when(
        "extents are known, or an index takes all of src and covers all other axes of self",
        lambda call: _is_known(call) or takes_all(call),
        _extents,
    ),
    when(
        f"pairs of places and updates <= {MOST_PAIRS}, or their number varies",
        lambda call: _pairs(call) <= MOST_PAIRS,
        _pairs,
    ),
)


def _updates(call: Call) -> Any:
    """Return how many updates are put in order; 0 where each is held against each place."""
    index = call.values["index"]
    return 0 if _pairs(call) <= MOST_PAIRS or not _is_known(call) else index.numel()


#: Of ops whose index is a list: each update is a slice, or an element of the flat tensor.
FEW_UPDATES: tuple[Condition, ...] = (
    _INTEGRAL,
    when(
        f"pairs of places and updates <= {MOST_PAIRS}, or updates <= {MOST_UPDATES}, "
        "or their number varies",
        lambda call: _updates(call) <= MOST_UPDATES,
        _updates,
    ),
)


@lowers(aten.scatter_add.default)
@accepts(*FEW_PAIRS)
def scatter_add(net: Net, self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """self, with src added at the places that an index of the same rank names."""
    return scatter_reduce(net, self, dim, index, src, "sum")


@lowers(aten.scatter.reduce)
@accepts(*FEW_PAIRS)
def scatter_with(
    net: Net, self: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str
) -> Tensor:
    """self, with src added or multiplied in at the places that an index names."""
    return scatter_reduce(net, self, dim, index, src, reduce)


@lowers(aten.scatter.value_reduce)
@accepts(*FEW_PAIRS)
def scatter_value_with(
    net: Net, self: Tensor, dim: int, index: Tensor, value: Number, reduce: str
) -> Tensor:
    """self, with a number added or multiplied in at the places that an index names."""
    number = net.expand(net.scalar(value, self.dtype), net.sizes(index))
    return scatter_reduce(net, self, dim, index, number, reduce)


@lowers(aten.scatter_reduce.two)
@accepts(*FEW_PAIRS)
def scatter_reduce(
    net: Net,
    self: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    include_self: bool = True,
) -> Tensor:
    """self, combined with src at the places that an index of the same rank names."""
    shape = self.shape
    x, index, src = (net.pad_rank(item, max(self.ndim, 1)) for item in (self, index, src))
    axis = dim % x.ndim
    src = net.narrow(fitted(net, src, index, axis), axis, 0, index.shape[axis])
    # Where the index is smaller than self, what lies beyond it stays as it is.
    near = fitted(net, x, index, axis)
    written = reduce_into(net, near, axis, index, src, _OPERATIONS[reduce], include_self)
    return net.reshape(_put_back(net, x, written, axis), shape)


def _put_back(net: Net, x: Tensor, corner: Tensor, axis: int) -> Tensor:
    """Put what was computed for the first extents of some axes back into the whole."""
    if corner.shape == x.shape:
        return corner
    for other in range(x.ndim):
        if corner.shape[other] != x.shape[other]:
            rest = x.shape[other] - corner.shape[other]
            behind = net.narrow(x, other, corner.shape[other], rest)
            behind = _cut(net, behind, corner, other)
            corner = net.concat([corner, behind], other)
    return corner


def _cut(net: Net, x: Tensor, like: Tensor, axis: int) -> Tensor:
    for other in range(x.ndim):
        if other != axis:
            x = net.narrow(x, other, 0, like.shape[other])
    return x


@lowers(aten.index_reduce.default)
@accepts(*FEW_UPDATES)
def index_reduce(
    net: Net,
    self: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    include_self: bool = True,
) -> Tensor:
    """self, with slices of source combined into the slices that an index names."""
    shape = self.shape
    x, source = (net.pad_rank(item, max(self.ndim, 1)) for item in (self, source))
    axis = dim % x.ndim
    row: list[Size] = [1] * x.ndim
    row[axis] = net.size(source, axis)
    places = net.reshape(index, row)
    written = reduce_into(net, x, axis, places, source, _OPERATIONS[reduce], include_self)
    return net.reshape(written, shape)


@lowers(aten.put.default)
@accepts(*FEW_UPDATES)
def put(net: Net, self: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """self, with elements replaced or added to by their place in the flat tensor."""
    flat = net.reshape(self, [-1])
    place = from_start(net, net.reshape(index, [-1]), net.size(flat, 0))
    values = net.reshape(net.cast(source, self.dtype), [-1])
    if accumulate:
        written = reduce_into(net, flat, 0, place, values, "SUM")
    else:
        written = net.scatter(flat, place, values, "ELEMENT", 0)
    return net.reshape(written, self.shape)
