"""Pooling in two and three dimensions."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call, evaluates
from singlecard.reference.windows import pad_spatial, window_padding

_MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVERAGES = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@evaluates("POOLING")
def pooling(call: Call) -> Tensor:
    x = call[0].float()  # INT8 may be pooled too; FP32 holds it exactly
    window = call.required_dims("window_size_nd")
    padding = window_padding(call, x.shape[2:], window, [1] * len(window))
    match call.text("type"):
        case "MAX":
            return _maximum(call, x, window, padding)
        case "AVERAGE":
            return _average(call, x, window, padding)
        case _:
            share = call.number("blend_factor")
            largest = _maximum(call, x, window, padding)
            return (1 - share) * largest + share * _average(call, x, window, padding)


def _maximum(
    call: Call, x: Tensor, window: tuple[int, ...], padding: list[tuple[int, int]]
) -> Tensor:
    padded = pad_spatial(x, padding, -math.inf)
    return _MAXIMA[len(window)](padded, window, call.required_dims("stride_nd"))


def _average(
    call: Call, x: Tensor, window: tuple[int, ...], padding: list[tuple[int, int]]
) -> Tensor:
    stride, average = call.required_dims("stride_nd"), _AVERAGES[len(window)]
    mean = average(pad_spatial(x, padding), window, stride)
    # The share of each window that counts: what lies on the input, or on the input and the
    # padding that was asked for, but never what rounding the size up has added.
    counted = x.new_ones((1, 1, *x.shape[2:]))
    if not call.integer("average_count_excludes_padding"):
        asked = _asked_padding(call, padding)
        counted = pad_spatial(counted, asked, 1.0)
        padding = [(0, whole[1] - part[1]) for whole, part in zip(padding, asked, strict=True)]
    return mean / average(pad_spatial(counted, padding), window, stride)


def _asked_padding(call: Call, padding: list[tuple[int, int]]) -> list[tuple[int, int]]:
    if call.text("padding_mode").startswith("SAME"):
        return padding
    pre, post = call.required_dims("pre_padding"), call.required_dims("post_padding")
    return list(zip(pre, post, strict=True))
