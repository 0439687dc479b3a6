"""Padding and output size of sliding windows, shared by convolution and pooling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call


def window_padding(
    call: Call, size: Sequence[int], window: Sequence[int], dilation: Sequence[int]
) -> list[tuple[int, int]]:
    """Return what to pad before and after each spatial dimension, by the layer's padding mode.

    The result is such that windows fill the padded input exactly or leave a rest at its end: where
    sizes are rounded up, the last window's missing elements are counted into the padding.
    """
    mode, strides = call.text("padding_mode"), call.required_dims("stride_nd")
    asked_pre, asked_post = call.required_dims("pre_padding"), call.required_dims("post_padding")
    padding = []
    for axis, length in enumerate(size):
        reach, stride = dilation[axis] * (window[axis] - 1) + 1, strides[axis]
        if mode.startswith("SAME"):
            total = max((math.ceil(length / stride) - 1) * stride + reach - length, 0)
            small, large = total // 2, math.ceil(total / 2)
            padding.append((small, large) if mode == "SAME_UPPER" else (large, small))
            continue
        pre, post = asked_pre[axis], asked_post[axis]
        if mode == "EXPLICIT_ROUND_UP":
            post += -(length + pre + post - reach) % stride
        padding.append((pre, post))
    return padding


def pad_spatial(x: Tensor, padding: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last dimensions of ``x``, the first pair being for the first of them."""
    if not any(map(any, padding)):
        return x
    return functional.pad(x, list(itertools.chain.from_iterable(reversed(padding))), value=value)
