"""Interpolation to another size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check

_SIZES: tuple[dict[str, Any], ...] = (
    {"size": 10},
    {"size": 7},
    {"size": 3},
    {"size": 1},
    {"scale_factor": 2},
    {"scale_factor": 1.7},
    {"scale_factor": 0.55},
    {"scale_factor": 1.7, "recompute_scale_factor": True},
)


@pytest.mark.parametrize("options", _SIZES, ids=str)
@pytest.mark.parametrize("mode", ("nearest", "nearest-exact"))
@pytest.mark.parametrize("dims", (1, 2, 3))
def test_nearest(mode: str, dims: int, options: dict[str, Any]) -> None:
    """Decoders upsample by it: with odd factors, rounding decides which element is nearest."""
    x = torch.randn(1, 2, *[5] * dims)
    check(lambda x: F.interpolate(x, mode=mode, **options), x, build=options == {"size": 10})


@pytest.mark.parametrize("options", _SIZES, ids=str)
@pytest.mark.parametrize("align_corners", (True, False))
@pytest.mark.parametrize("mode", ("linear", "bilinear", "trilinear", "bicubic"))
def test_smooth(mode: str, align_corners: bool, options: dict[str, Any]) -> None:
    """Segmentation heads end with it: a shift of half a pixel moves every border."""
    dims = {"linear": 1, "trilinear": 3}.get(mode, 2)
    x = torch.randn(1, 2, *[5] * dims)
    check(
        lambda x: F.interpolate(x, mode=mode, align_corners=align_corners, **options),
        x,
        build=options == {"size": 7},
    )


@pytest.mark.parametrize("mode", ("bilinear", "bicubic"))
@pytest.mark.parametrize("size", ((3, 4), (9, 2)), ids=str)
def test_antialiased(mode: str, size: tuple[int, int]) -> None:
    """Position tables of vision models are resized like this."""
    x = torch.randn(1, 2, 6, 7)
    check(lambda x: F.interpolate(x, size, mode=mode, antialias=True), x, build=True)


def test_mean_of_areas() -> None:
    """Masks are made smaller by it."""
    check(lambda x: F.interpolate(x, (3, 4), mode="area"), torch.randn(1, 2, 6, 6))
