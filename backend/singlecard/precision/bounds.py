"""How large a value can get, from the ops that made it: a narrow type must hold it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program

aten = torch.ops.aten

_UNIT = frozenset(
    {aten.sin.default, aten.cos.default, aten.tanh.default, aten.sigmoid.default}
    | {aten._softmax.default}
)
_SUMS = frozenset({aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar})
_PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar})
#: Ops whose results are elements of their arguments.
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
        aten.cat.default,
        aten.stack.default,
        aten.neg.default,
        aten.abs.default,
        aten._to_copy.default,
    }
)
_CHOICES = frozenset({aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor})

#: Longer constants are not looked through.
_LOOKED_THROUGH = 1 << 18


#: How far a value is looked into.
_DEPTH = 16


def bound_of(program: Program, value: Any) -> float:
    """Return a number that no finite element exceeds in magnitude; infinity where none is known."""
    return _bound(program, value, _DEPTH, {})


def _bound(
    program: Program, value: Any, depth: int, known: dict[tuple[fx.Node, int], float]
) -> float:
    """Look into each value once at each depth: ``y = x + x`` leads to its source by 2^n ways."""
    if not isinstance(value, fx.Node):
        return _worked_out(program, value, depth, known)
    if (value, depth) not in known:
        known[value, depth] = _worked_out(program, value, depth, known)
    return known[value, depth]


def _worked_out(
    program: Program, value: Any, depth: int, known: dict[tuple[fx.Node, int], float]
) -> float:
    infinity = float("inf")
    if isinstance(value, (bool, int, float)):
        return abs(float(value)) if math.isfinite(value) else 0.0
    if not isinstance(value, fx.Node) or depth == 0:
        return infinity
    fake = value.meta.get("val")
    if isinstance(fake, torch.Tensor) and fake.dtype == torch.bool:
        return 1.0
    constant = program.constant(value)
    if constant is not None:
        small = 0 < constant.numel() <= _LOOKED_THROUGH and not constant.is_complex()
        if not small:
            return infinity
        sizes = constant.abs().double()
        return float(torch.where(sizes.isfinite(), sizes, 0.0).max())
    if value.target in _UNIT:
        return 1.0
    parts: list[Any] = []
    if value.target in _MOVES:
        first: Any = value.args[0]
        parts = list(first) if isinstance(first, (list, tuple)) else [first]
    elif value.target in _CHOICES:
        parts = [arg for arg in value.args if not _is_condition(arg)]
    elif value.target in _SUMS | _PRODUCTS and not value.kwargs:
        parts = list(value.args)
    if not parts:
        return infinity
    bounds = [_bound(program, part, depth - 1, known) for part in parts]
    if value.target in _SUMS:
        return sum(bounds)
    if value.target in _PRODUCTS:
        return bounds[0] * bounds[1]
    return max(bounds)


def _is_condition(arg: Any) -> bool:
    return isinstance(arg, fx.Node) and arg.meta["val"].dtype == torch.bool
