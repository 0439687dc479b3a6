"""Pooling to a given size: windows divide each axis as evenly as it goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.pooling import INDICES, batched, spatial
from singlecard.lowering.pooled_indices import maximum_with_indices
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

_STATIC = when(
    "spatial extents are known",
    lambda call: all(isinstance(size, int) for size in spatial(call)),
    spatial,
)


@lowers(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
@accepts(dtype("self").floating, _STATIC)
def adaptive_avg_pool(net: Net, self: Tensor, output_size: Sequence[int]) -> Tensor:
    """Mean over windows that divide each axis as evenly as it goes."""
    count = len(output_size)
    x = batched(net, self, count)
    sizes = x.shape[-count:]
    if all(size % out == 0 for size, out in zip(sizes, output_size, strict=True)):
        window = [size // out for size, out in zip(sizes, output_size, strict=True)]
        x = net.pool("AVERAGE", x, window, stride=window, padding=[0] * count)
    else:  # a matrix for each axis: its rows hold the weights of the windows
        for place, out in enumerate(output_size):
            axis = x.ndim - count + place
            matrix = net.constant(_mean_matrix(sizes[place], out).to(x.dtype))
            product = net.matmul(net.transpose(x, axis, -1), matrix, transpose_b=True)
            x = net.transpose(product, axis, -1)
    return net.squeeze(x, [0]) if self.ndim == count + 1 else x


def _windows(size: int, out: int) -> list[range]:
    return [range(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def _mean_matrix(size: int, out: int) -> torch.Tensor:
    matrix = torch.zeros(out, size)
    for row, window in zip(matrix, _windows(size, out), strict=True):
        row[window.start : window.stop] = 1 / len(window)
    return matrix


@lowers(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
@accepts(dtype("self").floating, INDICES, _STATIC)
def adaptive_max_pool(net: Net, self: Tensor, output_size: Sequence[int]) -> list[Tensor | None]:
    """Maximum over windows that divide each axis as evenly as it goes, and where it stands."""
    count = len(output_size)
    x = batched(net, self, count)
    sizes = x.shape[-count:]
    rows = [_rows(size, out) for size, out in zip(sizes, output_size, strict=True)]
    if 1 in net.used:
        return [
            net.squeeze(item, [0]) if self.ndim == count + 1 else item
            for item in maximum_with_indices(net, x, rows)
        ]
    if all(size % out == 0 for size, out in zip(sizes, output_size, strict=True)):
        window = [size // out for size, out in zip(sizes, output_size, strict=True)]
        x = net.pool("MAX", x, window, stride=window, padding=[0] * count)
    else:
        for place, places in enumerate(rows):
            axis = x.ndim - count + place
            x = net.reduce("MAX", net.gather(x, net.constant(places), axis), [axis + 1], False)
    return [net.squeeze(x, [0]) if self.ndim == count + 1 else x, None]


def _rows(size: int, out: int) -> torch.Tensor:
    """Return windows as rows of equal length: a repeated element does not change a maximum."""
    windows = _windows(size, out)
    length = max(map(len, windows))
    return torch.tensor([[min(w.start + i, w.stop - 1) for i in range(length)] for w in windows])
