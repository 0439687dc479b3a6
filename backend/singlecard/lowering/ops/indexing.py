"""Ops that read elements by index."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


def _types(call: Call) -> list[str]:
    given = [index for index in call.values["indices"] if index is not None]
    return [str(index.dtype).removeprefix("torch.") for index in given]


def _has_integers(call: Call) -> bool:
    return not {"bool", "uint8"} & set(_types(call))


@lowers(aten.index.Tensor)
@accepts(
    when(
        "indices are integers, for the shape that a mask gives depends on data",
        _has_integers,
        lambda call: ", ".join(_types(call)),
    )
)
def index(net: Net, self: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Elements at broadcast integer indices."""
    x, axes = indexed_axes_together(net, self, indices)
    x, flat = flat_index(net, x, axes, [item for item in indices if item is not None])
    return net.gather(x, flat, axes[0])


def indexed_axes_together(
    net: Net, x: Tensor, indices: Sequence[Tensor | None]
) -> tuple[Tensor, list[int]]:
    """Return ``x`` with its indexed axes side by side, and those axes.

    Indexed axes with a slice between them give leading axes of the result, as PyTorch has it.
    """
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    if axes[-1] - axes[0] == len(axes) - 1:
        return x, axes
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    return net.permute(x, axes + rest), list(range(len(axes)))


def flat_index(
    net: Net, x: Tensor, axes: Sequence[int], given: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Make one axis of several neighbours; return the result and the index into that axis."""
    sizes = net.sizes(x)
    extent: Size = 1
    flat: Tensor | None = None
    for axis, item in zip(axes, given, strict=True):
        place = from_start(net, net.cast(item, torch.int64), sizes[axis])
        flat = place if flat is None else net.sum(_scaled(net, flat, sizes[axis]), place)
        extent = net.size_math("PROD", extent, sizes[axis])
    assert flat is not None
    if len(axes) > 1:
        x = net.reshape(x, [*sizes[: axes[0]], extent, *sizes[axes[-1] + 1 :]])
    return x, flat


def from_start(net: Net, index: Tensor, extent: Size) -> Tensor:
    """Count negative indices from the end, as PyTorch does."""
    behind = net.sum(index, _number(net, extent, index))
    negative = net.binary("LESS", index, net.scalar(0, index.dtype, index.ndim))
    return net.where(negative, behind, index)


def _scaled(net: Net, index: Tensor, extent: Size) -> Tensor:
    return index if extent == 1 else net.prod(index, _number(net, extent, index))


def _number(net: Net, size: Size, like: Tensor) -> Tensor:
    """Return a size as a number that broadcasts with ``like`` and does not add to its rank."""
    if isinstance(size, int):
        return net.scalar(size, like.dtype, like.ndim)
    number = net.cast(size, like.dtype)
    return number if like.ndim else net.squeeze(number, [0])


@lowers(aten.index_select.default)
@accepts(dtype("index").integral)
def index_select(net: Net, self: Tensor, dim: int, index: Tensor) -> Tensor:
    """Slices of one axis."""
    if not self.ndim:  # a number has one slice: itself
        return self
    return net.gather(self, net.reshape(index, [-1]) if not index.ndim else index, dim)


@lowers(aten.gather.default)
@accepts(dtype("index").integral)
def gather(net: Net, self: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    """Along one axis, the element that an index of the same rank names."""
    if not index.ndim:
        return net.squeeze(gather(net, net.pad_rank(self, 1), 0, net.pad_rank(index, 1)), [0])
    self = net.pad_rank(self, index.ndim)
    return net.gather_mode(fitted(net, self, index, dim), index, "ELEMENT", dim)


def fitted(net: Net, x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Cut ``x`` down to the extents of an index, along all axes but one."""
    for axis in range(x.ndim):
        if axis != dim % x.ndim and x.shape[axis] != index.shape[axis]:
            x = net.narrow(x, axis, 0, net.size(index, axis))
    return x


@lowers(aten.masked_scatter.default)
@accepts(dtype("mask").one_of(torch.bool))
def masked_scatter(net: Net, self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """self, with the places of a mask filled by the elements of source, one after the other."""
    shape = [net.size_of(extent) for extent in net.result.shape]
    hidden = net.expand(mask, shape)
    count = net.cumulative(net.cast(net.reshape(hidden, [-1]), torch.int64), 0)
    # The first place that is filled takes element 0; before it stands -1, which is not used.
    place = net.sum(count, net.scalar(-1, torch.int64, 1))
    place = net.binary("MAX", place, net.scalar(0, torch.int64, 1))
    values = net.gather(net.reshape(source, [-1]), place, 0)
    return net.where(hidden, net.reshape(values, shape), self)
