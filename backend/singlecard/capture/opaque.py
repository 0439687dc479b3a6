"""Ops on graphs, such as `torch.cond`, and custom ops that write: PyTorch runs them as they are.

Each becomes one call of an `Opaque`, which holds the op with the graphs that it is given, so that
the rest of a Program is what it always is: ATen ops on values. Nothing looks inside, folds, merges
or drops one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

_ops = torch.ops.higher_order


class Opaque:
    """A higher-order op with all its arguments but the values that the graph computes.

    Attributes:
        op: the op.
        name: what a person calls it.
        is_written_for: the custom op whose writes it makes functional, or None.
    """

    def __init__(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hold an op; in its arguments, `_Operand` stands for a value of the graph."""
        self.op, self._args, self._kwargs = op, args, kwargs
        first = args[0] if args else None
        custom = first if op in (_ops.auto_functionalized, _ops.auto_functionalized_v2) else None
        self.is_written_for = custom
        self.name = f"higher_order.{op.name()}" if custom is None else _overload_name(custom)
        # What `torch.fx` writes a call down by.
        self.__name__, self.__qualname__, self.__module__ = "opaque", "opaque", __name__

    def __call__(self, *operands: Any) -> Any:
        args, kwargs = self.with_operands(operands)
        return self.op(*args, **kwargs)

    def with_operands(self, operands: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the op's own arguments, positional and named, with values in their places."""
        return fx.node.map_aggregate(
            (self._args, self._kwargs),
            lambda item: operands[item.place] if isinstance(item, _Operand) else item,
        )

    @property
    def reason(self) -> str:
        """Why it stays in PyTorch."""
        if self.is_written_for is not None:
            return f"{self.name} writes to its arguments, and has no TensorRT lowering"
        if self.op is _ops.with_effects:
            return f"{self.name} runs for its effect, which no engine can have"
        return f"{self.name} runs graphs of its own, or a kernel, which stay in PyTorch"


class _Operand:
    """Stands for a value of the graph: its place among the operands."""

    def __init__(self, place: int) -> None:
        self.place = place


def _overload_name(op: Any) -> str:
    if isinstance(op, torch._ops.OpOverload):
        return f"{op.namespace}.{op._schema.name.split('::')[-1]}"
    return str(getattr(op, "__name__", op))


def is_opaque(node: fx.Node) -> bool:
    return isinstance(node.target, Opaque)


def close_opaque(module: fx.GraphModule) -> None:
    """Make each op of AOTAutograd's graph that is given graphs, or runs other ops, one call.

    Before:  true, false (graphs); cond(pred, true, false, (x, y))
    After:   opaque(pred, x, y)
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and _is_higher_order(node):
            _close(module, node)
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users and isinstance(_attribute(module, node), fx.GraphModule):
            module.graph.erase_node(node)


def _is_higher_order(node: fx.Node) -> bool:
    if node.target is _ops.with_effects:  # an ATen op for its effect is known by the Program
        return not isinstance(node.args[1], torch._ops.OpOverload)
    return isinstance(node.target, torch._ops.HigherOrderOperator)


def _close(module: fx.GraphModule, node: fx.Node) -> None:
    operands: dict[fx.Node, _Operand] = {}

    def held(item: Any) -> Any:
        if not isinstance(item, fx.Node):
            return item
        if item.op == "get_attr":
            value = _attribute(module, item)
            if not isinstance(value, torch.Tensor):
                return value
        return operands.setdefault(item, _Operand(len(operands)))

    args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), held)
    node.target = Opaque(node.target, args, dict(kwargs))
    node.args, node.kwargs = tuple(operands), {}


def _attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value
