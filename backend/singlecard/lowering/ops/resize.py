"""Interpolation to another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.sampling import Resampling
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten

#: One factor for each axis, or None where none was given.
Scales = Sequence[float | None] | None

_NEAREST = Resampling("NEAREST", "ASYMMETRIC", "FLOOR")
_NEAREST_EXACT = Resampling("NEAREST", "HALF_PIXEL", "HALF_UP")


def _smooth(mode: str, align_corners: bool) -> Resampling:
    return Resampling(mode, "ALIGN_CORNERS" if align_corners else "HALF_PIXEL")


def _resized(net: Net, x: Tensor, scales: Scales, how: Resampling) -> Tensor:
    """Resize the axes behind the channels to what PyTorch says of the result."""
    extents, out = x.shape[2:], net.result.shape[2:]
    given = [scale for scale in scales or () if scale is not None]
    # A factor that was given also places the elements, where it is not the ratio of the extents.
    if len(given) == len(out) and how.placing != "ALIGN_CORNERS":
        sides = zip(extents, given, out, strict=True)
        if any(extent < 0 or extent * factor != new for extent, factor, new in sides):
            return net.resize(x, how, scales=[1.0, 1.0, *given])
    return net.resize(x, how, sizes=[*net.sizes(x)[:2], *map(net.size_of, out)])


def _nearest(
    net: Net, x: Tensor, scales: Scales, how: Resampling, on_one_axis: Callable[..., Any]
) -> Tensor:
    """Resize by picking elements.

    Where a factor is no whole number, which element is nearest depends on how a product is
    rounded: then the elements that PyTorch picks are taken.
    """
    extents, out = x.shape[2:], list(net.result.shape[2:])
    factors = list(scales or [None] * len(out))
    axes = list(zip(extents, out, factors, strict=True))
    known = all(extent > 0 and isinstance(new, int) for extent, new, _ in axes)
    if not known or all(_is_whole(*axis) for axis in axes):
        return _resized(net, x, scales, how)
    for axis, (extent, new, factor) in enumerate(axes, 2):
        places = on_one_axis(torch.arange(extent).reshape(1, 1, -1).double(), [new], factor)
        x = net.gather(x, net.constant(places.long().flatten()), axis)
    return x


def _is_whole(extent: int, new: int, factor: float | None) -> bool:
    """Whether an axis grows or shrinks by a whole number, and nothing else was asked for."""
    if factor is not None and factor * extent != new:
        return False
    return new % extent == 0 or extent % new == 0


@lowers(
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
)
@accepts(dtype("self").floating)
def upsample_nearest(
    net: Net, self: Tensor, output_size: Sequence[Size], *scales: float | None
) -> Tensor:
    """The element at or before each place."""
    return _nearest(net, self, scales, _NEAREST, aten.upsample_nearest1d.default)


@lowers(
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact2d.default,
    aten._upsample_nearest_exact3d.default,
)
@accepts(dtype("self").floating)
def upsample_nearest_exact(
    net: Net, self: Tensor, output_size: Sequence[Size], *scales: float | None
) -> Tensor:
    """The element nearest to each place."""
    one = aten._upsample_nearest_exact1d.default
    return _nearest(net, self, scales, _NEAREST_EXACT, one)


@lowers(
    aten.upsample_linear1d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_trilinear3d.default,
)
@accepts(dtype("self").floating)
def upsample_linear(
    net: Net,
    self: Tensor,
    output_size: Sequence[Size],
    align_corners: bool,
    *scales: float | None,
) -> Tensor:
    """Linear between neighbours, axis by axis."""
    return _resized(net, self, scales, _smooth("LINEAR", align_corners))


@lowers(aten.upsample_bicubic2d.default)
@accepts(dtype("self").floating)
def upsample_bicubic(
    net: Net,
    self: Tensor,
    output_size: Sequence[Size],
    align_corners: bool,
    *scales: float | None,
) -> Tensor:
    """Cubic over four neighbours, axis by axis."""
    return _resized(net, self, scales, _smooth("CUBIC", align_corners))


def _known_extents() -> Condition:
    def extents(call: Call) -> list[Any]:
        return [*call.values["self"].shape[2:], *call.result.shape[2:]]

    return when(
        "spatial extents are known",
        lambda call: all(isinstance(size, int) for size in extents(call)),
        extents,
    )


def _antialiased(
    net: Net, x: Tensor, align_corners: bool, scales: Scales, filter_2d: Callable[..., Any]
) -> Tensor:
    """Filter axis by axis with the weights that PyTorch's own filter gives to each element."""
    for axis, (new, factor) in enumerate(
        zip(net.result.shape[2:], scales or (None, None), strict=True), 2
    ):
        extent = x.shape[axis]
        each = torch.eye(extent).reshape(extent, 1, 1, extent)
        weights = filter_2d(each, [1, new], align_corners, None, factor)
        matrix = net.constant(weights.reshape(extent, new).to(x.dtype))
        x = net.transpose(net.matmul(net.transpose(x, axis, -1), matrix), axis, -1)
    return x


@lowers(aten._upsample_bilinear2d_aa.default)
@accepts(dtype("self").floating, _known_extents())
def upsample_bilinear_antialiased(
    net: Net,
    self: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    *scales: float | None,
) -> Tensor:
    """Linear over as many neighbours as become one element."""
    one = aten._upsample_bilinear2d_aa.default
    return _antialiased(net, self, align_corners, scales, one)


@lowers(aten._upsample_bicubic2d_aa.default)
@accepts(dtype("self").floating, _known_extents())
def upsample_bicubic_antialiased(
    net: Net,
    self: Tensor,
    output_size: Sequence[int],
    align_corners: bool,
    *scales: float | None,
) -> Tensor:
    """Cubic over as many neighbours as become one element."""
    one = aten._upsample_bicubic2d_aa.default
    return _antialiased(net, self, align_corners, scales, one)
