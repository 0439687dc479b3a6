"""Convolution in one, two and three dimensions, and its transpose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check, refuse, weight

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSES = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@pytest.mark.parametrize("dims", (1, 2, 3))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"stride": 2, "padding": 1},
        {"dilation": 2, "groups": 2},
        {"padding": "same", "dilation": 3},
    ),
    ids=str,
)
def test_convolution(dims: int, options: dict[str, Any]) -> None:
    """Speech models convolve one axis, video models three: they would run in eager."""
    groups = options.get("groups", 1)
    x, kernel = torch.randn(2, 4, *[9] * dims), weight(6, 4 // groups, *[3] * dims)
    check(lambda x, w, b: _CONVOLUTIONS[dims](x, w, b, **options), x, kernel, weight(6), build=True)


def test_even_kernel_padded_to_the_same_size() -> None:
    """Padding to the same size is uneven for even kernels: edges of images would be off by one."""
    check(lambda x, w: F.conv2d(x, w, padding="same"), torch.randn(1, 2, 6, 7), weight(3, 2, 4, 2))


def test_kernel_computed_at_run_time() -> None:
    """Weight-normalized and dynamic filters are no constants: they would be left out."""
    check(
        lambda x, w, g: F.conv2d(x, w * g),
        torch.randn(1, 2, 6, 6),
        weight(3, 2, 3, 3),
        torch.rand(3, 1, 1, 1),
        build=True,
    )


@pytest.mark.parametrize("dims", (1, 2, 3))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "output_padding": 2},
        {"stride": 2, "dilation": 2, "groups": 2},
        {"dilation": 2, "padding": 1},
    ),
    ids=str,
)
def test_transposed_convolution(dims: int, options: dict[str, Any]) -> None:
    """Vocoders and segmentation heads upsample with it: a shifted output is noise.

    TensorRT has no output padding and refuses strides with dilation: both are worked around.
    """
    groups = options.get("groups", 1)
    x, kernel = torch.randn(2, 4, *[5] * dims), weight(4, 6 // groups, *[3] * dims)
    check(
        lambda x, w, b: _TRANSPOSES[dims](x, w, b, **options),
        x,
        kernel,
        weight(6),
        build=dims < 3,
    )


def test_transposed_convolution_in_bfloat16() -> None:
    """TensorRT builds no such layer: without a cast around it the whole engine fails."""
    x, kernel = torch.randn(1, 2, 5, 5).bfloat16(), weight(2, 3, 3, 3)
    check(
        lambda x, w: F.conv_transpose2d(x, w.bfloat16(), stride=2),
        x,
        kernel,
        build=True,
        tolerance=2e-2,
    )


def test_integers_stay_in_pytorch() -> None:
    """TensorRT convolves floating point only: the reason must name the type."""
    x, kernel = torch.ones(1, 2, 5, 5, dtype=torch.int64), torch.ones(3, 2, 3, 3, dtype=torch.int64)
    reason = refuse(F.conv2d, x, kernel)
    assert "float32, float16, bfloat16" in reason and "int64" in reason
