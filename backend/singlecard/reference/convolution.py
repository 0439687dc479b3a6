"""Convolution and deconvolution in two and three dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call, evaluates
from singlecard.reference.windows import pad_spatial, window_padding

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_DECONVOLUTIONS = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _kernel_and_bias(call: Call, kernel_shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Kernel and bias, from the inputs 1 and 2 or else from the layer's weights."""
    kernel, bias = call.optional(1), call.optional(2)
    if kernel is None:
        kernel = call.weights("kernel")
        if kernel is None:
            raise ValueError("there is no kernel, neither as weights nor as input 1")
    if bias is None:
        bias = call.weights("bias")
    return kernel.reshape(kernel_shape), bias


@evaluates("CONVOLUTION")
def convolution(call: Call) -> Tensor:
    x = call[0]
    window, dilation = call.required_dims("kernel_size_nd"), call.required_dims("dilation_nd")
    stride, groups = call.required_dims("stride_nd"), call.integer("num_groups")
    shape = (call.integer("num_output_maps"), x.shape[1] // groups, *window)
    kernel, bias = _kernel_and_bias(call, shape)
    padding = window_padding(call, x.shape[2:], window, dilation)
    if all(pre == post for pre, post in padding):
        symmetric = [pre for pre, _ in padding]
    else:
        x, symmetric = pad_spatial(x, padding), [0] * len(padding)
    return _CONVOLUTIONS[len(window)](x, kernel, bias, stride, symmetric, dilation, groups)


@evaluates("DECONVOLUTION")
def deconvolution(call: Call) -> Tensor:
    x = call[0]
    window, dilation = call.required_dims("kernel_size_nd"), call.required_dims("dilation_nd")
    stride, groups = call.required_dims("stride_nd"), call.integer("num_groups")
    shape = (x.shape[1], call.integer("num_output_maps") // groups, *window)
    kernel, bias = _kernel_and_bias(call, shape)
    whole = _DECONVOLUTIONS[len(window)](x, kernel, bias, stride, groups=groups, dilation=dilation)
    crop = _deconvolution_crop(call, x.shape[2:], whole.shape[2:], stride)
    return pad_spatial(whole, [(-before, -after) for before, after in crop])


def _deconvolution_crop(
    call: Call, size: torch.Size, whole: torch.Size, stride: tuple[int, ...]
) -> list[tuple[int, int]]:
    """What is cut off the full result on both sides of each dimension."""
    mode = call.text("padding_mode")
    if mode.startswith("EXPLICIT"):
        pre, post = call.required_dims("pre_padding"), call.required_dims("post_padding")
        return list(zip(pre, post, strict=True))
    crops = []
    for length, full, step in zip(size, whole, stride, strict=True):
        total = max(full - length * step, 0)
        small, large = total // 2, math.ceil(total / 2)
        crops.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return crops
