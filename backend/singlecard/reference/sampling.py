"""Layers that interpolate between elements: resize and grid sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call, evaluates


@evaluates("RESIZE")
def resize(call: Call) -> Tensor:
    """Interpolate one dimension after the other: all modes of the layer are separable."""
    x, scales = call[0], call.layer.attributes["scales"]
    given = call.integers(1)
    if given is None and not scales:
        given = call.dims("shape")
    for axis in range(x.dim()):
        length = x.shape[axis]
        if given is not None:
            size, scale = given[axis], given[axis] / length
        else:
            assert isinstance(scales, tuple)
            scale = scales[axis]
            size = math.floor(length * scale)
        if size != length or scale != 1.0:
            x = _resize_axis(call, x, axis, size, scale)
    return x


def _resize_axis(call: Call, x: Tensor, axis: int, size: int, scale: float) -> Tensor:
    length = x.shape[axis]
    places = _coordinates(call, length, size, scale, x.device)
    match call.text("resize_mode"):
        case "NEAREST":
            nearest = _rounded(call, places).long().clamp(0, length - 1)
            return x.index_select(axis, nearest)
        case "LINEAR":
            taps = torch.stack((places.floor(), places.floor() + 1))
            weights = 1 - (taps - places).abs()
        case _:
            taps = places.floor() + torch.arange(-1, 3, device=x.device).reshape(4, 1)
            weights = _cubic((taps - places).abs(), call.number("cubic_coeff"))
            if call.integer("exclude_outside"):
                weights = weights.masked_fill((taps < 0) | (taps >= length), 0.0)
                weights = weights / weights.sum(0)
    shape = [-1 if i == axis else 1 for i in range(x.dim())]
    parts = [
        x.index_select(axis, tap.long().clamp(0, length - 1)) * weight.to(x.dtype).reshape(shape)
        for tap, weight in zip(taps, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def _coordinates(call: Call, length: int, size: int, scale: float, device: torch.device) -> Tensor:
    """Where each output element lies, counted in input elements."""
    places = torch.arange(size, dtype=torch.float64, device=device)
    if size == 1 and call.text("selector_for_single_pixel") == "UPPER":
        return places
    match call.text("coordinate_transformation"):
        case "ALIGN_CORNERS":
            return places * ((length - 1) / (size - 1)) if size > 1 else places
        case "ASYMMETRIC":
            return places / scale
        case _:
            return (places + 0.5) / scale - 0.5


def _rounded(call: Call, places: Tensor) -> Tensor:
    match call.text("nearest_rounding"):
        case "HALF_UP":
            return (places + 0.5).floor()
        case "HALF_DOWN":
            return (places - 0.5).ceil()
        case "FLOOR":
            return places.floor()
        case _:
            return places.ceil()


def _cubic(distance: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel with coefficient ``a`` (R. Keys, 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))


_INTERPOLATIONS = {"NEAREST": "nearest", "LINEAR": "bilinear", "CUBIC": "bicubic"}
_BORDERS = {"CLAMP": "border", "FILL": "zeros", "REFLECT": "reflection"}


@evaluates("GRID_SAMPLE")
def grid_sample(call: Call) -> Tensor:
    return functional.grid_sample(
        call[0],
        call[1],
        _INTERPOLATIONS[call.text("interpolation_mode")],
        _BORDERS[call.text("sample_mode")],
        bool(call.integer("align_corners")),
    )
