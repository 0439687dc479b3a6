"""Pooling over windows of two or three axes. PyTorch sends one axis as two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.padding import padded
from singlecard.lowering.outputs import used_entries
from singlecard.lowering.pooled_indices import (
    LARGEST_WINDOW,
    maximum_with_indices,
    regular_windows,
)
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def spatial(call: Call) -> list[int | torch.SymInt]:
    return list(call.values["self"].shape[-_axes(call) :])


def _axes(call: Call) -> int:
    return 3 if "3d" in call.op else 2


def _known_or_floor(call: Call) -> bool:
    known = all(isinstance(size, int) for size in spatial(call))
    return known or not call.values["ceil_mode"]


_ROUNDING = when("spatial extents are known where ceil_mode is set", _known_or_floor, spatial)


def repeated(values: Sequence[int] | int, count: int) -> list[int]:
    """Return one value for each axis."""
    given = [values] if isinstance(values, int) else list(values)
    return given * (count if len(given) == 1 else 1)


def batched(net: Net, x: Tensor, count: int) -> Tensor:
    return net.unsqueeze(x, 0) if x.ndim == count + 1 else x


def _overhang(
    sizes: Sequence[int],
    out: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> list[int]:
    """Return how far the last windows reach beyond the end of each axis."""
    return [
        max((count - 1) * step + reach - size - before, 0)
        for size, count, reach, step, before in zip(
            sizes, out, window, stride, padding, strict=True
        )
    ]


def _sides(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Return padding as PyTorch writes it: the last axis first."""
    pairs = list(zip(before, after, strict=True))
    return [side for pair in reversed(pairs) for side in pair]


def _has_indices(call: Call) -> bool:
    return 1 in used_entries(call)


def _window_of(call: Call) -> list[int]:
    if "kernel_size" in call.values:
        return list(call.values["kernel_size"])
    pairs = zip(spatial(call), call.values["output_size"], strict=True)
    return [-(-int(size) // out) + 1 for size, out in pairs]


INDICES = when(
    f"extents are known and a window has <= {LARGEST_WINDOW} elements, where indices are used",
    lambda call: (
        not _has_indices(call)
        or (
            all(isinstance(size, int) for size in spatial(call))
            and math.prod(_window_of(call)) <= LARGEST_WINDOW
        )
    ),
    lambda call: f"{spatial(call)} and {_window_of(call)}",
)


@lowers(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
@accepts(
    _ROUNDING,
    INDICES,
    when(
        "spatial extents are known where windows are dilated",
        lambda call: (
            set(repeated(call.values["dilation"], 1)) == {1}
            or all(isinstance(size, int) for size in spatial(call))
        ),
        spatial,
    ),
)
def max_pool(
    net: Net,
    self: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> list[Tensor | None]:
    """Maximum over windows, and where it stands if anything asks."""
    count = len(kernel_size)
    window, steps = list(kernel_size), list(stride or kernel_size)
    before, apart = repeated(padding, count), repeated(dilation, count)
    x = batched(net, self, count)
    after, out = before, net.result[0].shape[-count:]
    if 1 in net.used:
        axes = zip(x.shape[-count:], out, window, steps, before, apart, strict=True)
        found = maximum_with_indices(net, x, [regular_windows(*axis) for axis in axes])
        return [item if x is self else net.squeeze(item, [0]) for item in found]
    if ceil_mode:
        reach = [step * (length - 1) + 1 for step, length in zip(apart, window, strict=True)]
        after = _overhang(x.shape[-count:], out, reach, steps, before)
    if set(apart) == {1} and x.dtype.is_floating_point:
        pooled = net.pool("MAX", x, window, stride=steps, padding=before, post_padding=after)
    else:
        pooled = _max_of_slices(net, x, window, steps, before, after, apart)
    return [pooled if x is self else net.squeeze(pooled, [0]), None]


def _max_of_slices(
    net: Net,
    x: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The maximum axis by axis, of shifted slices: for what the pooling layer does not take."""
    floating = x.dtype.is_floating_point
    lowest: Number = -math.inf if floating else torch.iinfo(x.dtype).min
    count = len(window)
    x = padded(net, x, _sides(before, after), "FILL", lowest)
    for place in range(count):
        axis = x.ndim - count + place
        reach = dilation[place] * (window[place] - 1) + 1
        length = (x.shape[axis] - reach) // stride[place] + 1
        slices = [
            net.narrow(x, axis, shift * dilation[place], length, stride[place])
            for shift in range(window[place])
        ]
        x = slices[0]
        for other in slices[1:]:
            x = net.binary("MAX", x, other)
    return x


@lowers(aten.avg_pool2d.default, aten.avg_pool3d.default)
@accepts(dtype("self").floating, _ROUNDING)
def avg_pool(
    net: Net,
    self: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean over windows, or their sum over a given divisor."""
    count = net.result.ndim - 2 if len(kernel_size) == 1 else len(kernel_size)
    window = repeated(kernel_size, count)
    steps = repeated(stride, count) if stride else window
    before = repeated(padding, count)
    x = batched(net, self, count)
    out, sizes = net.result.shape[-count:], x.shape[-count:]
    if ceil_mode:
        window = _within(sizes, out, window, before)
    after = _overhang(sizes, out, window, steps, before) if ceil_mode else before
    if all(more <= side for more, side in zip(after, before, strict=True)):
        whole = count_include_pad or divisor_override is not None
        pooled = net.pool("AVERAGE", x, window, stride=steps, padding=before, count_padding=whole)
        scale = None
    else:
        # Windows that hang over the end count neither what rounding up has added, nor always what
        # padding has: the mean over the whole window is scaled to the count that PyTorch takes.
        wide = padded(net, x, _sides(before, after), "FILL", 0)
        pooled = net.pool("AVERAGE", wide, window, stride=steps, padding=[0] * count)
        scale = _shares(sizes, out, window, steps, before, count_include_pad)
    if divisor_override is not None:
        pooled = net.times(pooled, math.prod(window) / divisor_override)
    elif scale is not None:
        pooled = net.prod(pooled, net.constant(scale.to(x.dtype)))
    return pooled if x is self else net.squeeze(pooled, [0])


def _within(
    sizes: Sequence[int], out: Sequence[int], window: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Return the window without what hangs over both ends of an axis that it covers alone.

    EfficientNet's last pooling has a window as wide as its channels, over images of a few pixels:
    padding them would ask for a window of 1280 x 1280, which TensorRT refuses.
    """
    return [
        min(reach, size) if count == 1 and before == 0 else reach
        for size, count, reach, before in zip(sizes, out, window, padding, strict=True)
    ]


def _shares(
    sizes: Sequence[int],
    out: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_padding: bool,
) -> torch.Tensor:
    """Return, for each window, its volume over the number of elements that count."""
    shares = torch.ones(1)
    for size, count, reach, step, before in zip(sizes, out, window, stride, padding, strict=True):
        start = torch.arange(count) * step - before
        end = torch.clamp(start + reach, max=size + before)
        if not count_padding:
            start, end = start.clamp(min=0), end.clamp(max=size)
        shares = shares.unsqueeze(-1) * (reach / (end - start))
    return shares
