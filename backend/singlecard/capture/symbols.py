"""Sizes of a graph, worked out from what the graph is given.

Every size is an expression of symbols. A symbol is the extent of an argument, a number that the
caller gives, or a number that only a call tells, such as how many elements `nonzero` finds.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._sympy import functions

aten = torch.ops.aten

#: What reads a size of a tensor.
_READS = (
    aten.sym_numel.default,
    aten.sym_size.int,
    aten.sym_storage_offset.default,
    aten.sym_stride.int,
)

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool)

#: Python's functions behind the operations of sizes; more than two operands go in pairs.
_FUNCTIONS: dict[type, Callable[..., Any]] = {
    functions.CeilToInt: math.ceil,
    functions.FloatPow: operator.pow,
    functions.FloatTrueDiv: operator.truediv,
    functions.FloorDiv: operator.floordiv,
    functions.FloorToInt: math.floor,
    functions.IntTrueDiv: operator.truediv,
    functions.Max: torch.sym_max,
    functions.Min: torch.sym_min,
    functions.Mod: operator.mod,
    functions.PowByNatural: operator.pow,
    functions.PythonMod: operator.mod,
    functions.ToFloat: torch.sym_float,
    functions.TruncToInt: math.trunc,
    sympy.Add: operator.add,
    sympy.Eq: operator.eq,
    sympy.Ge: operator.ge,
    sympy.Gt: operator.gt,
    sympy.Le: operator.le,
    sympy.Lt: operator.lt,
    sympy.Max: torch.sym_max,
    sympy.Min: torch.sym_min,
    sympy.Mul: operator.mul,
    sympy.Ne: operator.ne,
    sympy.Pow: operator.pow,
}


def is_number(value: Any) -> TypeGuard[torch.SymInt | torch.SymFloat | torch.SymBool]:
    """Tell whether a value of a graph is a number that may differ from call to call."""
    return isinstance(value, _NUMBERS)


def expression(size: Any) -> sympy.Expr:
    """Return the sympy expression of a size."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def symbols_in(value: Any) -> Iterator[sympy.Symbol]:
    """Yield the symbols in a fake tensor's shape, in a number, or in several of them."""
    if isinstance(value, torch.Tensor):
        value = value.shape
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from symbols_in(item)
    elif isinstance(value, _NUMBERS):
        yield from value.node.expr.free_symbols


@dataclass(frozen=True)
class Linear:
    """A size that is ``factor * symbol + rest``."""

    symbol: sympy.Symbol
    factor: int
    rest: int

    @classmethod
    def of(cls, expr: sympy.Expr) -> Linear | None:
        if len(expr.free_symbols) != 1:
            return None
        (symbol,) = expr.free_symbols
        factor, rest = expr.coeff(symbol), expr.xreplace({symbol: sympy.Integer(0)})
        if factor.is_Integer and rest.is_Integer and expr == factor * symbol + rest:
            return cls(symbol, int(factor), int(rest))
        return None

    @property
    def is_symbol(self) -> bool:
        return self.factor == 1 and self.rest == 0


def read_sizes_from_inputs(graph: fx.Graph) -> None:
    """Work out each size from the graph's inputs, instead of reading it from a value in between.

    Before:  input -> convolution -> sym_size -> mul -> view
    After:   input -> sym_size -> floordiv -> mul -> view

    Else a part of the graph would have to run before its own arguments are known. What only a call
    tells, such as the number of elements that `nonzero` finds, is read once, where it is found.
    """
    sizes = SizeNodes(graph)
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op != "call_function" or not is_number(value):
            continue
        if node.target in _READS and node.args[0].op != "placeholder":
            with graph.inserting_before(node):
                replacement = sizes.of(value)
            if replacement is not None:
                node.replace_all_uses_with(replacement)
                graph.erase_node(node)
                continue
        sizes.learn(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and is_number(node.meta.get("val")) and not node.users:
            graph.erase_node(node)


def _strides(value: Any) -> tuple[Any, ...]:
    is_plain = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return tuple(value.stride()) if is_plain else ()


#: Key of a node's metadata: it is a single number on the host, worked out from Python's floats.
ON_HOST = "on_host"


def note_host_numbers(graph: fx.Graph) -> None:
    """Note the single numbers that follow from floats of the caller's, and from nothing else.

    Dynamo hands a float over as a float64 tensor without dimensions, on the host, and computes with
    it in float64 up to where a tensor takes it. TensorRT has no float64; the host has.
    """
    on_host: set[fx.Node] = set()
    for node in graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.ndim or value.device.type != "cpu":
            continue
        if node.op == "placeholder" and value.dtype == torch.float64:
            on_host.add(node)
        elif isinstance(node.target, torch._ops.OpOverload) and not node.kwargs:
            given = set(filter(_is_given, node.all_input_nodes))
            if given and given <= on_host:
                on_host.add(node)
                node.meta[ON_HOST] = True


def _is_given(node: fx.Node) -> bool:
    """Tell whether a value is neither a size nor a single number of the model's."""
    value = node.meta.get("val")
    single = node.op == "get_attr" and isinstance(value, torch.Tensor) and not value.ndim
    return not is_number(value) and not single


def is_host_value(node: fx.Node) -> bool:
    """Tell whether the host works a node out: it is a number that no tensor is needed for."""
    return is_number(node.meta.get("val")) or ON_HOST in node.meta


class SizeNodes:
    """The nodes of a graph that have the values of symbols, and those that follow from them."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._known: dict[sympy.Expr, fx.Node] = {}
        self._extents: dict[sympy.Symbol, tuple[Any, fx.Node, int, Linear]] = {}
        self._inputs = graph.find_nodes(op="placeholder")
        for node in self._inputs:
            self.learn(node)
            value = node.meta.get("val")
            for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
                linear = Linear.of(expression(size))
                if linear and (linear.is_symbol or linear.symbol not in self._extents):
                    self._extents.setdefault(linear.symbol, (aten.sym_size.int, node, axis, linear))
        for node in self._inputs:  # what no extent tells, a stride may
            for axis, step in enumerate(_strides(node.meta.get("val"))):
                linear = Linear.of(expression(step))
                if linear and linear.is_symbol:
                    read = aten.sym_stride.int
                    self._extents.setdefault(linear.symbol, (read, node, axis, linear))

    def learn(self, node: fx.Node) -> None:
        """Note that a node has the value of a symbol, where it does."""
        value = node.meta.get("val")
        if is_number(value) and isinstance(value.node.expr, sympy.Symbol):
            self._known.setdefault(value.node.expr, node)

    def of(self, number: Any) -> fx.Node | None:
        """Return the node that works out a symbolic number from the graph's inputs.

        What is missing is added where the graph inserts, which must be behind what symbols that
        only a call tells are read from. None: it follows from no input.
        """
        made = self._of(number.node.expr)
        return made if isinstance(made, fx.Node) else None

    def symbol(self, symbol: sympy.Symbol) -> fx.Node | None:
        """Return the node that has the value of a symbol; None where no input tells it."""
        if symbol not in self._known and symbol in self._extents:
            target, node, axis, linear = self._extents[symbol]
            with self.graph.inserting_after(self._inputs[-1]):
                read = self.graph.call_function(target, (node, axis))
            read.meta["val"] = target(node.meta["val"], axis)
            if not linear.is_symbol:
                with self.graph.inserting_after(read):
                    less = self._call(operator.sub, read, linear.rest)
                with self.graph.inserting_after(less):
                    read = self._call(operator.floordiv, less, linear.factor)
            self._known[symbol] = read
        return self._known.get(symbol)

    def _of(self, expr: sympy.Basic) -> Any:
        if isinstance(expr, sympy.Symbol):
            return self.symbol(expr)
        if expr.is_number:
            return int(expr) if expr.is_Integer else float(expr)
        if expr not in self._known:
            function = next(
                (_FUNCTIONS[kind] for kind in type(expr).__mro__ if kind in _FUNCTIONS), None
            )
            arguments = [self._of(arg) for arg in expr.args]
            if function is None or None in arguments:
                return None
            made, *rest = arguments
            if not rest:
                made = self._call(function, made)
            for argument in rest:
                made = self._call(function, made, argument)
            self._known[expr] = made
        return self._known[expr]

    def _call(self, function: Callable[..., Any], *arguments: Any) -> fx.Node:
        node = self.graph.call_function(function, arguments)
        node.meta["val"] = function(
            *(item.meta["val"] if isinstance(item, fx.Node) else item for item in arguments)
        )
        return node


def same_extents(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Tell whether two shapes, given as sizes, are known to be equal."""
    return len(before) == len(after) and all(
        statically_known_true(x == y) for x, y in zip(before, after, strict=True)
    )
