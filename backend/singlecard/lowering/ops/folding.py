"""Adding windows back together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.convolution import convolution
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.col2im.default)
@accepts(dtype("self").floating, arg("self").static_shape, arg("output_size").known)
def col2im(
    net: Net,
    self: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Overlapping windows summed: a transposed convolution whose kernel moves each element."""
    x = self if self.ndim == 3 else net.unsqueeze(self, 0)
    volume = math.prod(kernel_size)
    channels = x.shape[1] // volume
    axes = zip(output_size, kernel_size, dilation, padding, stride, strict=True)
    counts, rests = [], []
    for size, window, apart, side, step in axes:
        free = size + 2 * side - apart * (window - 1) - 1
        counts.append(free // step + 1)
        rests.append(free % step)
    x = net.reshape(x, [x.shape[0], channels * volume, *counts])
    kernel = torch.eye(volume).reshape(volume, 1, *kernel_size).repeat(channels, 1, 1, 1)
    weight = net.constant(kernel.to(x.dtype))
    summed = convolution(net, x, weight, None, stride, padding, dilation, True, rests, channels)
    return summed if self.ndim == 3 else net.squeeze(summed, [0])
