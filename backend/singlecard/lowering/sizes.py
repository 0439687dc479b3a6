"""Symbolic sizes inside a network: every expression of sizes becomes layers on input shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import (
    CeilToInt,
    FloorDiv,
    FloorToInt,
    IntTrueDiv,
    Max,
    Min,
    Mod,
    PowByNatural,
    PythonMod,
    ToFloat,
    TruncToInt,
)

from singlecard.capture.spans import Triple
from singlecard.capture.symbols import Linear, expression, is_number
from singlecard.errors import LoweringError
from singlecard.lowering.ranges import UNBOUNDED
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

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

#: Makes an input of a network that has a number, when it is needed.
Make = Callable[[], Tensor]


class Sizes:
    """Knows which input extent each symbol is, and lowers expressions over them.

    A number that the caller gives is needed as an extent, which TensorRT takes from shapes alone,
    or as an operand, which may be any number. The two ways are kept apart.
    """

    def __init__(self, net: Net, ranges: Mapping[sympy.Symbol, Triple]) -> None:
        """Prepare.

        Args:
            net: the network.
            ranges: smallest, usual and largest value of each symbol.
        """
        self.net, self.spans = net, ranges
        self.symbols: dict[sympy.Symbol, Callable[[], Size]] = {}
        self.known: dict[sympy.Expr, Size] = {}
        #: Numbers that the caller hands over: what makes an extent of one, and an operand.
        self.extents: dict[sympy.Expr, Callable[[], Size]] = {}
        self.operands: dict[sympy.Expr, Make] = {}
        self._operands: dict[sympy.Expr, Tensor] = {}

    def learn(self, shape: Sequence[Any], tensor: Tensor) -> None:
        """Note that ``tensor``, a network input, has this symbolic shape."""
        later: dict[sympy.Symbol, Callable[[], Size]] = {}
        for axis, size in enumerate(shape):
            expr = expression(size)
            linear = Linear.of(expr)
            if linear is None or not linear.is_symbol:
                if not expr.is_Integer:
                    self.known[expr] = self.net.size(tensor, axis)
                if linear is not None and linear.factor > 0:
                    later.setdefault(linear.symbol, functools.partial(self._solve, linear, expr))
            else:
                read = functools.partial(self.net.size, tensor, axis)
                self.symbols.setdefault(linear.symbol, read)
        self.symbols = later | self.symbols

    def forget(self) -> None:
        """Let go of the network."""
        for held in (self.symbols, self.known, self.extents, self.operands, self._operands):
            held.clear()

    def _solve(self, linear: Linear, expr: sympy.Expr) -> Size:
        less = self.net.size_math("SUB", self.known[expr], linear.rest)
        return self.net.size_math("FLOOR_DIV", less, linear.factor)

    def settle(self, shape: Sequence[Any]) -> None:
        """Take the symbols of a shape as their usual values from now on."""
        for size in shape:
            if isinstance(size, torch.SymInt):
                for symbol in size.node.expr.free_symbols:
                    self.known[symbol] = self.spans[symbol][1]

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

    def operand(self, number: Any) -> Any:
        """Return a number that an op computes with: itself, or a one-element tensor.

        Raises:
            LoweringError: it follows from nothing that the network is given.
        """
        if not is_number(number):
            return number
        expr = number.node.expr
        is_size = not isinstance(number, torch.SymFloat)  # the host works out what is none
        if is_size and expr.free_symbols <= self.symbols.keys() | self.known.keys():
            return self.of(number)
        if expr in self.operands:
            if expr not in self._operands:
                self._operands[expr] = self.operands[expr]()
            return self._operands[expr]
        raise LoweringError(f"the number {expr} is none that the engine is given")

    def lower(self, expr: sympy.Expr) -> Size:
        if expr.is_Integer:
            return int(expr)
        if expr not in self.known:
            follows = expr.free_symbols <= self.symbols.keys()
            if expr in self.extents and not follows:
                self.known[expr] = self.extents[expr]()
            else:
                self.known[expr] = self._lower(expr)
        return self.known[expr]

    def _lower(self, expr: sympy.Expr) -> Size:
        if isinstance(expr, sympy.Symbol):
            if expr not in self.symbols:
                raise LoweringError(f"the size {expr} is not the extent of any engine input")
            return self.symbols[expr]()
        if isinstance(expr, (sympy.Pow, PowByNatural)) and expr.args[1].is_Integer:
            base, times = expr.args
            if times > 0:
                return self._combine("PROD", [self.lower(base)] * int(times))
        if isinstance(expr, (Mod, PythonMod)):
            a, b = (self.lower(arg) for arg in expr.args)
            whole = self._combine("FLOOR_DIV", [a, b])
            return self._combine("SUB", [a, self._combine("PROD", [whole, b])])
        if isinstance(expr, (FloorToInt, CeilToInt)) and isinstance(expr.args[0], IntTrueDiv):
            a, b = (self.lower(arg) for arg in expr.args[0].args)
            if isinstance(expr, CeilToInt):
                a = self._combine("SUM", [a, self._combine("SUB", [b, 1])])
            return self._combine("FLOOR_DIV", [a, b])
        if isinstance(expr, (TruncToInt, FloorToInt)):
            return self._scaled(expr)
        operation = next(
            (_OPERATIONS[kind] for kind in type(expr).__mro__ if kind in _OPERATIONS), None
        )
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
        triples = [self.range(size) for size in shape]
        smallest, usual, largest = zip(*triples, strict=True)
        return smallest, usual, largest

    def range(self, size: Any) -> Triple:
        """Return the smallest, the usual and the largest value of a size."""
        if isinstance(size, int):
            return size, size, size
        expr = size.node.expr
        ends = [
            {symbol: sympy.Integer(self.spans[symbol][at]) for symbol in expr.free_symbols}
            for at in range(3)
        ]
        smallest, usual, largest = (int(expr.xreplace(end)) for end in ends)
        low, high = min(smallest, usual, largest), max(smallest, usual, largest)
        # A size that falls where a symbol rises takes other values between the ends too.
        rises = all(
            expr.xreplace({**ends[0], symbol: ends[2][symbol]}) >= smallest
            for symbol in expr.free_symbols
        )
        if not rises:
            bounds = size.node.shape_env.bound_sympy(expr)
            if bounds.lower > -UNBOUNDED:
                low = min(low, max(1, int(bounds.lower)))
            if bounds.upper < UNBOUNDED:
                high = max(high, int(bounds.upper))
        return low, min(max(usual, low), high), high
