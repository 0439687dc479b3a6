"""Reading a tensor at the places of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

_MODES = ("LINEAR", "NEAREST", "CUBIC")
_BORDERS = ("FILL", "CLAMP", "REFLECT")


@lowers(aten.grid_sampler_2d.default)
@accepts(dtype("input").floating)
def grid_sampler_2d(
    net: Net,
    input: Tensor,
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Tensor:
    """Elements of a plane at computed places."""
    mode, border = _MODES[interpolation_mode], _BORDERS[padding_mode]
    # The layer wants one type for both (tensorrt_rtx 1.7.1.116): places in FP32 set it.
    kind = torch.float32 if torch.float32 in (input.dtype, grid.dtype) else input.dtype
    sampled = net.grid_sample(
        net.cast(input, kind), net.cast(grid, kind), mode, border, align_corners
    )
    return net.cast(sampled, input.dtype)


@lowers(aten.grid_sampler_3d.default)
@accepts(
    dtype("input").floating,
    arg("input").static_shape,
    arg("grid").static_shape,
    arg("interpolation_mode").one_of(0, 1),
)
def grid_sampler_3d(
    net: Net,
    input: Tensor,
    grid: Tensor,
    interpolation_mode: int,
    padding_mode: int,
    align_corners: bool,
) -> Tensor:
    """Elements of a volume at computed places: TensorRT's own layer knows planes only."""
    batch, channels, *extents = input.shape
    wide = net.cast(grid, torch.float32)
    count = wide.shape[1] * wide.shape[2] * wide.shape[3]
    # The grid names the last axis first.
    axes = [
        _Axis(net, extent, align_corners).place(
            net.reshape(net.narrow(wide, -1, 2 - place, 1), [batch, 1, count]), padding_mode
        )
        for place, extent in enumerate(extents)
    ]
    flat = net.reshape(input, [batch, channels, -1])
    corners = [_nearest(net, x) if interpolation_mode else _between(net, x) for x in axes]
    total: Tensor | None = None
    for corner in itertools.product(*corners):
        value = _read(net, flat, corner, extents, padding_mode == 0)
        total = value if total is None else net.sum(total, value)
    assert total is not None
    return net.reshape(net.cast(total, input.dtype), [batch, channels, *grid.shape[1:4]])


#: A neighbour on one axis: where it is, as a whole number in FP32, and how much of it is taken.
_Neighbour = tuple[Tensor, Tensor | None]


def _nearest(net: Net, x: Tensor) -> list[_Neighbour]:
    return [(net.unary("ROUND", x), None)]


def _between(net: Net, x: Tensor) -> list[_Neighbour]:
    low = net.unary("FLOOR", x)
    share = net.sub(x, low)
    one = _number(net, 1.0)
    return [(low, net.sub(one, share)), (net.sum(low, one), share)]


def _number(net: Net, value: float) -> Tensor:
    return net.scalar(value, torch.float32, 3)


def _read(
    net: Net, flat: Tensor, corner: Sequence[_Neighbour], extents: Sequence[int], fills: bool
) -> Tensor:
    """Return the elements at one corner, in FP32, times how much of them is taken."""
    index: Tensor | None = None
    weight: Tensor | None = None
    inside: Tensor | None = None
    for (place, share), extent in zip(corner, extents, strict=True):
        zero, last = _number(net, 0.0), _number(net, extent - 1.0)
        near = net.binary("MIN", net.binary("MAX", place, zero), last)
        whole = net.cast(near, torch.int64)
        if fills:
            within = net.binary("EQUAL", near, place)
            inside = within if inside is None else net.binary("AND", inside, within)
        if index is not None:
            whole = net.sum(net.prod(index, net.scalar(extent, torch.int64, 3)), whole)
        index = whole
        if share is not None:
            weight = share if weight is None else net.prod(weight, share)
    assert index is not None
    places = net.expand(index, [flat.shape[0], flat.shape[1], index.shape[2]])
    value = net.cast(net.gather_mode(flat, places, "ELEMENT", 2), torch.float32)
    if inside is not None:
        value = net.where(inside, value, _number(net, 0.0))
    return value if weight is None else net.prod(value, weight)


@dataclass(frozen=True)
class _Axis:
    """From grid coordinates, -1 to 1, to places on an axis."""

    net: Net
    extent: int
    align_corners: bool

    def place(self, x: Tensor, border: int) -> Tensor:
        """Return places, moved inside where the border is clamped or mirrored."""
        net, extent = self.net, self.extent
        if self.align_corners:
            place = net.times(net.sum(x, _number(net, 1.0)), (extent - 1) / 2)
        else:
            scaled = net.sum(net.times(x, float(extent)), _number(net, extent - 1.0))
            place = net.times(scaled, 0.5)
        if border == 0:
            return place
        if border == 2:
            place = self.mirrored(place)
        low = net.binary("MAX", place, _number(net, 0.0))
        return net.binary("MIN", low, _number(net, extent - 1.0))

    def mirrored(self, x: Tensor) -> Tensor:
        """Fold places back between two mirrors: the outer elements, or their outer edges."""
        net = self.net
        low = 0.0 if self.align_corners else -0.5
        span = float(self.extent - 1 if self.align_corners else self.extent)
        if span == 0:
            return net.times(x, 0.0)
        away = net.unary("ABS", net.sub(x, _number(net, low)))
        turns = net.unary("FLOOR", net.times(away, 1 / span))
        rest = net.sub(away, net.times(turns, span))
        half = net.unary("FLOOR", net.times(turns, 0.5))
        odd = net.sub(turns, net.times(half, 2.0))
        back = net.prod(odd, net.sub(_number(net, span), net.times(rest, 2.0)))
        return net.sum(net.sum(rest, back), _number(net, low))
