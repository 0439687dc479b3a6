"""Tensors made of a number or of counting. What depends on nothing at run time is folded before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, when
from singlecard.lowering.declaration import accepts, computes_with, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.full.default)
@computes_with("fill_value")
def full(net: Net, size: Sequence[Size], fill_value: Number | Tensor, *_: Any) -> Tensor:
    """One number everywhere."""
    return net.expand(net.operand(fill_value, net.result.dtype), size)


@lowers(aten.full_like.default)
@computes_with("fill_value")
def full_like(net: Net, self: Tensor, fill_value: Number | Tensor, *_: Any) -> Tensor:
    """One number, in the shape of another tensor."""
    return net.expand(net.operand(fill_value, net.result.dtype), net.sizes(self))


@lowers(aten.scalar_tensor.default)
@computes_with("s")
def scalar_tensor(net: Net, s: Number | Tensor, *_: Any) -> Tensor:
    """A number."""
    return net.operand(s, net.result.dtype)


def _steps(call: Call) -> str:
    return "start = {start}, end = {end}, step = {step}".format_map(call.values)


def _counts_up(call: Call) -> bool:
    start, end, step = (call.values[name] for name in ("start", "end", "step"))
    if isinstance(end, (int, float)):
        return True
    return isinstance(end, torch.SymInt) and isinstance(start, int) and step == 1


@lowers(aten.arange.start_step)
@accepts(
    arg("start").known,
    arg("step").known,
    when("end is known, or whole numbers go up by one to it", _counts_up, _steps),
)
def arange(net: Net, start: Number, end: Number | Tensor, step: Number = 1, *_: Any) -> Tensor:
    """Numbers at equal distances."""
    if isinstance(end, Tensor):
        length = net.size_math("SUB", end, int(start)) if start else end
        return net.cast(net.count(length, int(start)), net.result.dtype)
    return net.constant(torch.arange(start, end, step, dtype=net.result.dtype))


@lowers(aten.copy.default)
def copy(net: Net, self: Tensor, src: Tensor, *_: Any) -> Tensor:
    """src in the type and shape of self."""
    return net.expand(net.cast(src, self.dtype), net.sizes(self))
