"""Pooling over windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check, refuse

_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@pytest.mark.parametrize("dims", (1, 2, 3))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"stride": 2, "padding": 1},
        {"stride": 2, "padding": 1, "ceil_mode": True},
        {"stride": 5, "ceil_mode": True},
        {"dilation": 2, "stride": 1},
        {"dilation": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    ),
    ids=str,
)
def test_maximum(dims: int, options: dict[str, Any]) -> None:
    """Every convolutional classifier pools; PyTorch drops a last window that starts in padding."""
    check(lambda x: _MAXIMA[dims](x, 3, **options), torch.randn(2, 3, *[8] * dims), build=dims == 2)


@pytest.mark.parametrize("options", ({"stride": 2, "padding": 1}, {"dilation": 2}), ids=str)
def test_maximum_with_indices(options: dict[str, Any]) -> None:
    """SegNet-like decoders unpool by these indices: a wrong one puts a pixel elsewhere."""
    x = torch.randint(0, 5, (2, 3, 8, 7)).float()  # with ties: the first one counts
    x[0, 0, 3, 3] = float("nan")
    check(lambda x: F.max_pool2d(x, 3, return_indices=True, **options), x, build=True)
    check(lambda x: F.adaptive_max_pool2d(x, (3, 2), return_indices=True), x)


def test_windows_too_large_for_indices_stay_in_pytorch() -> None:
    """Each element of a window is a comparison: an engine of ten thousand would not build."""
    reason = refuse(lambda x: F.max_pool2d(x, 12, return_indices=True), torch.randn(1, 1, 24, 24))
    assert "<= 128" in reason and "[12, 12]" in reason


def test_whole_numbers() -> None:
    """Masks are pooled as integers too."""
    check(lambda x: F.max_pool2d(x, 2, 1, 1), torch.randint(-9, 9, (1, 2, 5, 5)))


@pytest.mark.parametrize("dims", (1, 2, 3))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"stride": 2, "padding": 1},
        {"stride": 2, "padding": 1, "count_include_pad": False},
        {"stride": 2, "padding": 1, "ceil_mode": True},
        {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    ),
    ids=str,
)
def test_mean(dims: int, options: dict[str, Any]) -> None:
    """At edges the count decides: a wrong divisor darkens the border of every feature map."""
    check(
        lambda x: _AVERAGES[dims](x, 3, **options), torch.randn(2, 3, *[8] * dims), build=dims == 2
    )


@pytest.mark.parametrize("ceil_mode", (False, True))
def test_given_divisor(ceil_mode: bool) -> None:
    """A sum pooled by hand has a divisor of its own."""
    check(
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode, divisor_override=5), torch.randn(1, 2, 8, 8)
    )


@pytest.mark.parametrize("size", (7, (4, 2), (3, 5), (None, 3)), ids=str)
def test_adaptive(size: Any) -> None:
    """Classifier heads take images of any size: windows then differ in length."""
    x = torch.randn(2, 3, 8, 10)
    check(lambda x: F.adaptive_avg_pool2d(x, size), x, build=True)
    check(lambda x: F.adaptive_max_pool2d(x, size), x)


def test_adaptive_in_three_dimensions_and_without_a_batch() -> None:
    """Video heads, and single images."""
    check(lambda x: F.adaptive_avg_pool3d(x, (2, 3, 4)), torch.randn(2, 4, 5, 6))
    check(lambda x: F.adaptive_max_pool3d(x, (2, 3, 4)), torch.randn(2, 4, 5, 6))
    check(lambda x: F.max_pool2d(x, 2), torch.randn(2, 4, 6))


def test_local_response_normalization() -> None:
    """AlexNet's normalization averages over channels."""
    check(lambda x: F.local_response_norm(x, 3), torch.randn(2, 5, 4, 4))


@pytest.mark.parametrize("options", ({}, {"divisor_override": 7}), ids=str)
def test_window_far_larger_than_the_image(options: dict[str, Any]) -> None:
    """EfficientNet's last pooling: TensorRT refuses a window of 1280 x 1280."""
    x = torch.randn(2, 3, 7, 5)
    check(lambda x: F.avg_pool2d(x, 1280, ceil_mode=True, **options), x, build=True)
