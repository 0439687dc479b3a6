"""Ops that pick elements by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


def _indices(call: Call) -> list[Any]:
    return [index for index in call.values["indices"] if index is not None]


def _are_adjacent(call: Call) -> bool:
    given = [index is not None for index in call.values["indices"]]
    first, last = given.index(True), len(given) - given[::-1].index(True)
    return all(given[first:last])


@lowers(aten.index.Tensor)
@accepts(
    dtype("indices").integral,
    when("indexed axes are adjacent", _are_adjacent, lambda call: "a slice between them"),
    when(
        "the extents of indexed axes are known",
        lambda call: all(
            isinstance(call.values["self"].shape[axis], int)
            for axis, index in enumerate(call.values["indices"])
            if index is not None
        ),
        lambda call: list(call.values["self"].shape),
    ),
)
def index(net: Net, self: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Elements at broadcast integer indices over adjacent axes."""
    axes = [axis for axis, item in enumerate(indices) if item is not None]
    first, count = axes[0], len(axes)
    flat: Tensor | None = None
    for axis in axes:
        item = indices[axis]
        assert item is not None
        extent = self.shape[axis]
        place = _non_negative(net, net.cast(item, torch.int64), extent)
        if flat is not None:
            place = net.sum(net.times(flat, extent), place)
        flat = place
    assert flat is not None
    sizes: list[Size] = net.sizes(self)
    extent = 1
    for axis in axes:
        extent *= self.shape[axis]
    x = net.reshape(self, [*sizes[:first], extent, *sizes[first + count :]]) if count > 1 else self
    return net.gather(x, flat, first)


def _non_negative(net: Net, index: Tensor, extent: int) -> Tensor:
    """Count negative indices from the end, as PyTorch does."""
    zero = net.scalar(0, index.dtype, index.ndim)
    behind = net.sum(index, net.scalar(extent, index.dtype, index.ndim))
    return net.where(net.binary("LESS", index, zero), behind, index)
