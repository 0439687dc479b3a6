"""Between which numbers the elements of a value lie, as far as the ops that made it tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx

from singlecard.capture.program import Program

aten = torch.ops.aten


class Interval(NamedTuple):
    """The smallest and the largest that an element can be; infinite where it is not known."""

    low: float
    high: float

    def __or__(self, other: Interval) -> Interval:
        return Interval(min(self.low, other.low), max(self.high, other.high))


ANY = Interval(-math.inf, math.inf)

#: How many ops a value is followed through.
_DEPTH = 24

#: Ops whose results are elements of their first argument, or of all that are in its list.
_MOVES = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
        aten.index.Tensor,
        aten.gather.default,
        aten.embedding.default,
        aten.cat.default,
        aten.stack.default,
        aten.flip.default,
        aten.repeat.default,
        aten.clone.default,
        aten.amax.default,
        aten.amin.default,
    }
)
_CHOICES = frozenset(
    {aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.where.ScalarOther}
)
_FILLED = frozenset({aten.full.default, aten.full_like.default})


def _sum(a: Interval, b: Interval) -> Interval:
    return Interval(a.low + b.low, a.high + b.high)


def _negative(a: Interval) -> Interval:
    return Interval(-a.high, -a.low)


def _product(a: Interval, b: Interval) -> Interval:
    products = [x * y if x and y else 0.0 for x in a for y in b]  # not 0 times infinity
    return Interval(min(products), max(products))


def _larger(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def _smaller(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


_OF_TWO: dict[Any, Callable[[Interval, Interval], Interval]] = {
    aten.add.Tensor: _sum,
    aten.add.Scalar: _sum,
    aten.sub.Tensor: lambda a, b: _sum(a, _negative(b)),
    aten.sub.Scalar: lambda a, b: _sum(a, _negative(b)),
    aten.rsub.Scalar: lambda a, b: _sum(b, _negative(a)),
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.maximum.default: _larger,
    aten.minimum.default: _smaller,
}

_OF_ONE: dict[Any, Callable[[Interval], Interval]] = {
    aten.neg.default: _negative,
    aten.abs.default: lambda a: Interval(0.0, max(abs(a.low), abs(a.high))),
    aten.relu.default: lambda a: _larger(a, Interval(0.0, 0.0)),
    aten.sigmoid.default: lambda a: Interval(0.0, 1.0),
    aten._softmax.default: lambda a: Interval(0.0, 1.0),
    aten.tanh.default: lambda a: Interval(-1.0, 1.0),
    aten.sin.default: lambda a: Interval(-1.0, 1.0),
    aten.cos.default: lambda a: Interval(-1.0, 1.0),
    aten.exp.default: lambda a: Interval(0.0, math.inf),
    aten.tril.default: lambda a: a | Interval(0.0, 0.0),
    aten.triu.default: lambda a: a | Interval(0.0, 0.0),
}


def interval_of(program: Program, value: Any) -> Interval:
    """Return an interval that holds all elements of a value; NaN is not asked about.

    A result beyond what its type holds counts as infinite, as it is.
    """
    return _interval(program, value, _DEPTH, {})


#: What is known of values, each looked into so many ops deep.
_Known = dict[tuple[fx.Node, int], Interval]


def _interval(program: Program, value: Any, depth: int, known: _Known) -> Interval:
    """Look into each value once at each depth: ``y = x + x`` leads to its source by 2^n ways."""
    if not isinstance(value, fx.Node):
        return _worked_out(program, value, depth, known)
    if (value, depth) not in known:
        known[value, depth] = _worked_out(program, value, depth, known)
    return known[value, depth]


def _worked_out(program: Program, value: Any, depth: int, known: _Known) -> Interval:
    if isinstance(value, (bool, int, float)):
        return Interval(float(value), float(value))
    if not isinstance(value, fx.Node) or depth == 0:
        return ANY
    fake = value.meta.get("val")
    if not isinstance(fake, torch.Tensor) or fake.dtype.is_complex:
        return ANY
    if fake.dtype == torch.bool:
        return Interval(0.0, 1.0)
    constant = program.constant(value)
    if constant is not None:
        return _of_constant(constant)
    if not fake.dtype.is_floating_point:
        info = torch.iinfo(fake.dtype)
        return Interval(float(info.min), float(info.max))
    return _held(_made(program, value, depth - 1, known), torch.finfo(fake.dtype).max)


def _of_constant(value: torch.Tensor) -> Interval:
    if value.numel() == 0 or value.device.type == "meta":
        return ANY
    low, high = value.detach().aminmax()
    return Interval(float(low), float(high)) if bool(low <= high) else ANY  # NaN is neither


def _held(found: Interval, limit: float) -> Interval:
    low = found.low if found.low >= -limit else -math.inf
    return Interval(low, found.high if found.high <= limit else math.inf)


def _made(program: Program, node: fx.Node, depth: int, known: _Known) -> Interval:
    def of(value: Any) -> Interval:
        return _interval(program, value, depth, known)

    target, args = node.target, node.args
    if target is aten._to_copy.default or target is torch.ops.prims.convert_element_type.default:
        return of(args[0])
    if target in _MOVES:
        return _any_of(of, args[0] if isinstance(args[0], (list, tuple)) else [args[0]])
    if target in _CHOICES:
        chosen = (args[0], args[2]) if "masked" in str(target) else args[1:3]
        return _any_of(of, chosen)
    if target in _FILLED:
        return of(args[1])
    if target in _OF_TWO and len(args) == 2 and not node.kwargs:
        return _OF_TWO[target](of(args[0]), of(args[1]))
    if target in _OF_ONE:
        return _OF_ONE[target](of(args[0]))
    if target is aten.clamp.default and not node.kwargs:
        result = of(args[0])
        low, high = (*args[1:], None, None)[:2]
        result = result if low is None else _larger(result, of(low))
        return result if high is None else _smaller(result, of(high))
    return ANY


def _any_of(of: Callable[[Any], Interval], values: Any) -> Interval:
    found = [of(value) for value in values]
    result = found[0] if found else ANY
    for interval in found[1:]:
        result |= interval
    return result
