"""Symbolic sizes inside a network: every expression of sizes becomes layers on input shapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod, ToFloat, TruncToInt

from singlecard.capture.spans import Triple
from singlecard.errors import LoweringError
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

#: Largest extent of a dynamic dimension whose range PyTorch does not bound.
UNBOUNDED = 4096

#: Largest denominator of a factor: such factors and their products with sizes are exact.
_FINEST = 1 << 10

_OPERATIONS: dict[Any, str] = {
    sympy.Add: "SUM",
    sympy.Mul: "PROD",
    FloorDiv: "FLOOR_DIV",
    Min: "MIN",
    Max: "MAX",
    sympy.Min: "MIN",
    sympy.Max: "MAX",
}


def expression(size: Any) -> sympy.Expr:
    """Return the sympy expression of a size."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


class Sizes:
    """Knows which input extent each symbol is, and lowers expressions over them."""

    def __init__(self, net: Net, spans: Mapping[sympy.Symbol, Triple]) -> None:
        self.net, self.spans = net, spans
        self.symbols: dict[sympy.Symbol, tuple[Tensor, int]] = {}
        self.known: dict[sympy.Expr, Size] = {}
        #: Largest values of symbols whose end PyTorch does not know.
        self.limits: dict[sympy.Symbol, int] = {}
        #: Numbers that the caller hands over, and what makes an input of one when it is needed.
        self.given: dict[sympy.Expr, Callable[[], Tensor]] = {}

    def learn(self, shape: Sequence[Any], tensor: Tensor) -> None:
        """Note that ``tensor``, a network input, has this symbolic shape."""
        for axis, size in enumerate(shape):
            expr = expression(size)
            if isinstance(expr, sympy.Symbol):
                self.symbols.setdefault(expr, (tensor, axis))
            elif not expr.is_Integer:
                self.known[expr] = self.net.size(tensor, axis)

    def settle(self, shape: Sequence[Any]) -> None:
        """Take the symbols of a shape as their usual values from now on."""
        for size in shape:
            expr = expression(size) if isinstance(size, torch.SymInt) else sympy.Integer(1)
            for symbol in expr.free_symbols:
                self.known[symbol] = self._triple(size.node.shape_env, symbol)[1]

    def of(self, size: Any) -> Size:
        """Return a size as an int, or as a one-element int64 tensor.

        Raises:
            LoweringError: the size depends on something that is no extent of an input.
        """
        if isinstance(size, int):
            return size
        if not isinstance(size, torch.SymInt):
            raise LoweringError(f"{size} is not a size that an engine can compute")
        return self.lower(size.node.expr)

    def lower(self, expr: sympy.Expr) -> Size:
        if expr.is_Integer:
            return int(expr)
        if expr not in self.known:
            follows = expr.free_symbols <= self.symbols.keys()
            if expr in self.given and not follows:
                self.known[expr] = self.net.size(self.given[expr](), 0)
            else:
                self.known[expr] = self._lower(expr)
        return self.known[expr]

    def _lower(self, expr: sympy.Expr) -> Size:
        if isinstance(expr, sympy.Symbol):
            if expr not in self.symbols:
                raise LoweringError(f"the size {expr} is not the extent of any engine input")
            return self.net.size(*self.symbols[expr])
        if isinstance(expr, sympy.Pow) and expr.exp.is_Integer and expr.exp > 0:
            return self._combine("PROD", [self.lower(expr.base)] * int(expr.exp))
        if isinstance(expr, (Mod, PythonMod)):
            a, b = (self.lower(arg) for arg in expr.args)
            whole = self._combine("FLOOR_DIV", [a, b])
            return self._combine("SUB", [a, self._combine("PROD", [whole, b])])
        if isinstance(expr, TruncToInt):
            return self._scaled(expr)
        operation = _OPERATIONS.get(type(expr))
        if operation is None:
            raise LoweringError(f"the size {expr} has no TensorRT lowering")
        return self._combine(operation, [self.lower(arg) for arg in expr.args])

    def _scaled(self, expr: sympy.Expr) -> Size:
        """Lower a size times a factor, rounded down: what resizing by 0.5 or 1.5 asks for."""
        factor, size = expr.args[0].as_coeff_Mul()
        share = sympy.Rational(factor)
        if not isinstance(size, ToFloat) or not 0 < share.q <= _FINEST or share.p < 0:
            raise LoweringError(f"the size {expr} has no TensorRT lowering")
        whole = self._combine("PROD", [self.lower(size.args[0]), int(share.p)])
        return self._combine("FLOOR_DIV", [whole, int(share.q)])

    def _combine(self, operation: str, sizes: Sequence[Size]) -> Size:
        return functools.reduce(lambda a, b: self.net.size_math(operation, a, b), sizes)

    def ranges(
        self, shape: Sequence[Any]
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Return the smallest, the usual and the largest shape that a symbolic one can take."""
        triples = [self._range(size) for size in shape]
        smallest, usual, largest = zip(*triples, strict=True)
        return smallest, usual, largest

    def _range(self, size: Any) -> Triple:
        if isinstance(size, int):
            return size, size, size
        environment, expr = size.node.shape_env, size.node.expr
        triples = {symbol: self._triple(environment, symbol) for symbol in expr.free_symbols}
        values = [
            int(expr.xreplace({symbol: triple[at] for symbol, triple in triples.items()}))
            for at in range(3)
        ]
        low, high = min(values), max(values)
        if not isinstance(expr, sympy.Symbol) and not self.spans.keys() & expr.free_symbols:
            bounds = environment.bound_sympy(expr)  # a size may fall where a symbol rises
            low = min(low, max(1, int(bounds.lower)))
            high = max(high, int(bounds.upper)) if bounds.upper < UNBOUNDED else high
        return low, min(max(values[1], low), high), high

    def _triple(self, environment: Any, symbol: sympy.Symbol) -> Triple:
        limit = self.limits.get(symbol, UNBOUNDED)
        if symbol in self.spans:  # what the user gave stands, but for what fits into no cache
            low, usual, high = self.spans[symbol]
            limit = max(low, self.limits.get(symbol, high))
            return low, min(usual, limit), min(high, limit)
        return _known_range(environment, symbol, limit)


def _known_range(environment: Any, symbol: sympy.Symbol, limit: int) -> Triple:
    """Return what PyTorch knows of a size, and what we know, ``limit``.

    What is usual does not depend on the example, so that any example finds the same engine.
    """
    bounds = environment.bound_sympy(symbol)
    low = max(1, int(bounds.lower))
    high = int(bounds.upper) if bounds.upper < limit else limit
    examples = getattr(environment, "backed_var_to_val", None) or environment.var_to_val
    hint = int(examples.get(symbol, 0))
    while high < hint:
        high *= 2
    return low, min(max(round(math.sqrt(low * high)), low), high), high
