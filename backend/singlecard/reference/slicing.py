"""Slices and padding."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("SLICE", widens=False)
def slice_(call: Call) -> Tensor:
    x, mode = call[0], call.text("mode")
    axes = call.integers(5) or call.dims("axes") or tuple(range(x.dim()))
    start, size, stride = (
        _given(call, index, name) for index, name in ((1, "start"), (2, "shape"), (3, "stride"))
    )
    fill = call.optional(4)
    outside: Tensor | None = None
    for axis, first, count, step in zip(axes, start, size, stride, strict=True):
        axis, length = axis % x.dim(), x.shape[axis]
        last = first + (count - 1) * step
        if count == 0 or (0 <= min(first, last) and max(first, last) < length):
            x = _within(x, axis, first, count, step)
            continue
        places = first + step * torch.arange(count, device=x.device)
        if mode == "FILL":
            shape = [-1 if i == axis else 1 for i in range(x.dim())]
            beyond = ((places < 0) | (places >= length)).reshape(shape)
            outside = beyond if outside is None else outside | beyond
        if length == 0:
            x = x.new_zeros([count if i == axis else n for i, n in enumerate(x.shape)])
        else:
            x = x.index_select(axis, _inside(places, length, mode))
    if outside is None:
        return x
    value = torch.zeros((), dtype=x.dtype, device=x.device) if fill is None else fill
    return torch.where(outside, value.to(x.dtype).reshape(()), x)


def _given(call: Call, index: int, name: str) -> tuple[int, ...]:
    given = call.integers(index)
    return call.required_dims(name) if given is None else given


def _within(x: Tensor, axis: int, first: int, count: int, step: int) -> Tensor:
    """A slice that stays inside: a view, unless it runs backwards."""
    if count == 0:
        return x.narrow(axis, 0, 0)
    if step > 0:
        reached = x.narrow(axis, first, (count - 1) * step + 1)
        return reached[(slice(None),) * axis + (slice(None, None, step),)]
    if step == 0:
        return x.narrow(axis, first, 1).expand([count if i == axis else -1 for i in range(x.dim())])
    lowest = first + (count - 1) * step
    forward = _within(x, axis, lowest, count, -step)
    return forward.flip(axis)


def _inside(places: Tensor, length: int, mode: str) -> Tensor:
    """Where elements beyond the ends come from."""
    match mode:
        case "WRAP":
            return places % length
        case "CLAMP" | "FILL":
            return places.clamp(0, length - 1)
        case "REFLECT":
            # The ends are mirrors that are not repeated: 0 1 2 1 0 1 ...
            period = max(2 * (length - 1), 1)
            folded = places % period
            return torch.where(folded < length, folded, period - folded)
        case _:
            raise IndexError(
                f"the slice reaches from {int(places.min())} to {int(places.max())} in a dimension "
                f"of {length}"
            )


@evaluates("PADDING", widens=False)
def padding(call: Call) -> Tensor:
    """Zeros around the last two dimensions; negative padding cuts."""
    (top, left), (bottom, right) = (
        call.required_dims("pre_padding_nd"),
        call.required_dims("post_padding_nd"),
    )
    return torch.nn.functional.pad(call[0], (left, right, top, bottom))
