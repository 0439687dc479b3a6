"""Layers that reduce along dimensions, or order the elements of one."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("REDUCE")
def reduce(call: Call) -> Tensor:
    x, axes, keep = call[0], call.axes(), bool(call.integer("keep_dims"))
    match call.text("op"):
        case "SUM":
            return x.sum(axes, keep)
        case "PROD":
            for axis in reversed(axes):
                x = x.prod(axis, keep)
            return x
        case "MAX":
            return _extreme(x, axes, keep, largest=True)
        case "MIN":
            return _extreme(x, axes, keep, largest=False)
        case "AVG":
            if x.is_floating_point():
                return x.mean(axes, keep)
            count = x.numel() // max(x.sum(axes).numel(), 1)
            return torch.div(x.sum(axes, keep), count, rounding_mode="trunc")
        case operation:
            raise NotImplementedError(f"reduction {operation}")


def _extreme(x: Tensor, axes: tuple[int, ...], keep: bool, *, largest: bool) -> Tensor:
    if x.numel():
        return x.amax(axes, keep) if largest else x.amin(axes, keep)
    # Of no elements, the largest is the smallest value of the type, and the other way round.
    limits = None if x.is_floating_point() else torch.iinfo(x.dtype)
    lowest, highest = (-torch.inf, torch.inf) if limits is None else (limits.min, limits.max)
    return torch.full_like(x.sum(axes, keep, dtype=x.dtype), lowest if largest else highest)


@evaluates("SOFTMAX")
def softmax(call: Call) -> Tensor:
    (axis,) = call.axes()
    return call[0].softmax(axis)


@evaluates("RAGGED_SOFTMAX")
def ragged_softmax(call: Call) -> Tensor:
    """Softmax over the first ``bounds`` elements of each row; the rest is zero."""
    x, bounds = call[0], call[1]
    inside = torch.arange(x.shape[-1], device=x.device) < bounds
    return x.masked_fill(~inside, -torch.inf).softmax(-1).masked_fill(~inside, 0.0)


@evaluates("CUMULATIVE")
def cumulative(call: Call) -> Tensor:
    x, axis = call[0], int(call[1].item())
    if call.integer("reverse"):
        x = x.flip(axis)
    total = x.cumsum(axis)
    if call.integer("exclusive"):
        total = total - x
    return total.flip(axis) if call.integer("reverse") else total


@evaluates("TOPK")
def topk(call: Call) -> tuple[Tensor, ...]:
    x, (axis,) = call[0], call.axes()
    given = call.integers(1)
    k = given[0] if given else call.integer("k")
    largest = call.text("op") == "MAX"
    if k == 1:
        indices = (x.argmax if largest else x.argmin)(axis, keepdim=True)
    else:
        # Stable: of equal elements the one with the lower index comes first.
        indices = x.argsort(dim=axis, descending=largest, stable=True).narrow(axis, 0, k)
    return x.gather(axis, indices), indices
