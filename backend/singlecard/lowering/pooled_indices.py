"""The maximum of windows together with where it stands, for pooling whose indices are read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

#: Largest volume of a window: each of its elements is a slice that is compared with the best.
LARGEST_WINDOW = 128


def regular_windows(
    size: int, out: int, window: int, stride: int, padding: int, dilation: int
) -> torch.Tensor:
    """Return the places of each window on one axis, [out, window]; padding is replaced by the
    window's own nearest element, which changes neither the maximum nor where it is first met."""
    places = torch.arange(out)[:, None] * stride - padding + torch.arange(window) * dilation
    inside = (places >= 0) & (places < size)
    first = places.masked_fill(~inside, size).amin(1, keepdim=True)
    last = places.masked_fill(~inside, -1).amax(1, keepdim=True)
    return torch.where(places < 0, first, torch.where(places >= size, last, places))


def maximum_with_indices(
    net: Net, x: Tensor, windows: Sequence[torch.Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the maximum over windows of the last axes, and its index in their flat extent."""
    count = len(windows)
    sizes = x.shape[-count:]
    best: Tensor | None = None
    where: Tensor | None = None
    for shifts in itertools.product(*(range(rows.shape[1]) for rows in windows)):
        value, flat = x, torch.zeros(1, dtype=torch.int64)
        for place, (rows, shift) in enumerate(zip(windows, shifts, strict=True)):
            picked = rows[:, shift].contiguous()
            value = net.gather(value, net.constant(picked), x.ndim - count + place)
            flat = flat.unsqueeze(-1) + picked * math.prod(sizes[place + 1 :])
        index = net.constant(flat.reshape([1] * (x.ndim - count) + list(flat.shape[1:])))
        if best is None or where is None:
            best, where = value, net.expand(index, net.sizes(value))
            continue
        better = net.binary("GREATER", value, best)
        if x.dtype.is_floating_point:  # NaN wins over everything, the last one over the others
            better = net.binary("OR", better, net.unary("ISNAN", value))
        best, where = net.where(better, value, best), net.where(better, index, where)
    assert best is not None and where is not None
    return best, where
