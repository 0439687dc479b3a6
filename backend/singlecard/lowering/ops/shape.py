"""Ops that give the same elements another shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import MOST_DIMENSIONS
from singlecard.lowering.declaration import lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor
from singlecard.network.types import BYTES

aten = torch.ops.aten


@lowers(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.view_copy.default,
    takes=BYTES,
    gives=BYTES,
)
def view(net: Net, self: Tensor, size: Sequence[Size]) -> Tensor:
    """The same elements in another shape."""
    return net.reshape(self, size)


@lowers(aten.permute.default, aten.permute_copy.default, takes=BYTES, gives=BYTES)
def permute(net: Net, self: Tensor, dims: Sequence[int]) -> Tensor:
    """Axes in another order."""
    return net.permute(self, dims)


@lowers(aten.transpose.int, takes=BYTES, gives=BYTES)
def transpose(net: Net, self: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two axes exchanged."""
    return net.transpose(self, dim0, dim1) if self.ndim else self


@lowers(aten.t.default, takes=BYTES, gives=BYTES)
def t(net: Net, self: Tensor) -> Tensor:
    """A matrix transposed."""
    return net.transpose(self, 0, 1) if self.ndim == 2 else self


@lowers(aten.expand.default, takes=BYTES, gives=BYTES)
def expand(net: Net, self: Tensor, size: Sequence[Size], implicit: bool = False) -> Tensor:
    """Extents of 1 repeated."""
    return net.expand(self, size)


@lowers(aten.unsqueeze.default, takes=BYTES, gives=BYTES)
def unsqueeze(net: Net, self: Tensor, dim: int) -> Tensor:
    """A new axis of extent 1."""
    return net.unsqueeze(self, dim)


@lowers(aten.squeeze.default, takes=BYTES, gives=BYTES)
def squeeze_all(net: Net, self: Tensor) -> Tensor:
    """All axes of extent 1 removed."""
    return net.squeeze(self, [axis for axis, extent in enumerate(self.shape) if extent == 1])


@lowers(aten.squeeze.dim, aten.squeeze.dims, takes=BYTES, gives=BYTES)
def squeeze(net: Net, self: Tensor, dim: int | Sequence[int]) -> Tensor:
    """Axes of extent 1 removed."""
    axes = [dim] if isinstance(dim, int) else list(dim)
    # PyTorch keeps an extent symbolic only where it is not 1.
    return net.squeeze(self, [axis for axis in axes if self.ndim and self.shape[axis] == 1])


@lowers(aten.repeat.default)
def repeat(net: Net, self: Tensor, repeats: Sequence[Size]) -> Tensor:
    """The whole tensor laid side by side along each axis."""
    x = net.pad_rank(self, len(repeats))
    extents = net.sizes(x)
    # Beside each axis that grows stands a new one: [a, b] becomes [1, a, 1, b], then is expanded.
    before: list[Size] = []
    expanded: list[Size] = []
    after: list[Size] = []
    for extent, times in zip(extents, repeats, strict=True):
        if times != 1 and extent != 1:
            before.append(1)
            expanded.append(times)
        before.append(extent)
        expanded.append(times if extent == 1 else extent)
        after.append(net.size_math("PROD", extent, times))
    if not expanded:
        return x
    if len(before) > MOST_DIMENSIONS:  # a slice that goes round needs no more axes
        return net.slice(x, [0] * x.ndim, after, [1] * x.ndim, "WRAP")
    return net.reshape(net.expand(net.reshape(x, before), expanded), after)


@lowers(aten.flip.default, takes=BYTES, gives=BYTES)
def flip(net: Net, self: Tensor, dims: Sequence[int]) -> Tensor:
    """The order of some axes reversed."""
    axes = {axis % self.ndim for axis in dims} if self.ndim else set()
    if not axes:
        return self
    sizes = net.sizes(self)
    starts: list[Size] = [
        net.size_math("SUB", size, 1) if axis in axes else 0 for axis, size in enumerate(sizes)
    ]
    strides = [-1 if axis in axes else 1 for axis in range(self.ndim)]
    return net.slice(self, starts, sizes, strides)


@lowers(aten.roll.default)
def roll(net: Net, self: Tensor, shifts: Sequence[Size], dims: Sequence[int] = ()) -> Tensor:
    """Elements moved along axes; what leaves at one end enters at the other."""
    if not self.ndim:
        return self
    if not dims:
        flat = net.reshape(self, [-1])
        return net.reshape(roll(net, flat, shifts, [0]), net.sizes(self))
    sizes = net.sizes(self)
    starts: list[Size] = [0] * self.ndim
    for axis, shift in zip(dims, shifts, strict=True):
        # The last element of the first row stands ``shift`` before the end of the axis.
        back, extent = net.size_math("SUB", starts[axis], shift), sizes[axis]
        known = isinstance(back, int) and isinstance(extent, int)
        starts[axis] = back % extent if known else back  # type: ignore[operator]
    if not any(starts):
        return self
    return net.slice(self, starts, sizes, [1] * self.ndim, "WRAP")
