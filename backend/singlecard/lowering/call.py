"""One op of a graph with its arguments bound to the names of its schema."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import OF_MEMORY, promised
from singlecard.capture.opaque import Opaque
from singlecard.capture.program import with_effects


@functools.cache
def _schema(target: torch._ops.OpOverload) -> tuple[tuple[str, Any, bool], ...]:
    return tuple(
        (arg.name, arg.default_value if arg.has_default_value() else None, arg.kwarg_only)
        for arg in target._schema.arguments
    )


@functools.cache
def _numbers(target: torch._ops.OpOverload) -> tuple[str, ...]:
    if torch.Tag.pointwise not in target.tags:
        return ()
    kinds = ("NumberType", "TensorType")
    return tuple(arg.name for arg in target._schema.arguments if _kind(arg.type) in kinds)


def _kind(kind: Any) -> str:
    return str((kind.getElementType() if kind.kind() == "OptionalType" else kind).kind())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the fake tensors in a value, lists and tuples included."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def meta_of(value: Any) -> Any:
    """Replace nodes in an argument by what is known of their values."""
    if isinstance(value, fx.Node):
        return value.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [meta_of(item) for item in value]
    return value


def _as_promised(node: fx.Node, value: Any) -> Any:
    """Return what is known of an op's first argument, with the strides that it has in PyTorch."""
    strides = next(iter(promised(node)), None)
    if strides is None or tuple(value.stride()) == tuple(strides):
        return value
    with value.fake_mode:
        return torch.empty_strided(value.shape, strides, dtype=value.dtype, device=value.device)


@dataclass(frozen=True, eq=False)
class Call:
    """A node whose arguments, defaults filled in, are known by name.

    ``arguments`` holds nodes where the graph has nodes; ``values`` holds fake tensors and numbers.
    """

    node: fx.Node
    arguments: dict[str, Any]
    values: dict[str, Any]
    result: Any

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        target = node.target
        arguments: dict[str, Any] = {}
        if isinstance(target, torch._ops.OpOverload):
            for index, (name, default, kwarg_only) in enumerate(_schema(target)):
                if not kwarg_only and index < len(node.args):
                    arguments[name] = node.args[index]
                else:
                    arguments[name] = node.kwargs.get(name, default)
        else:
            arguments = {f"arg{index}": value for index, value in enumerate(node.args)}
        values = {name: meta_of(value) for name, value in arguments.items()}
        if node.target in OF_MEMORY:
            name = next(iter(values))
            values[name] = _as_promised(node, values[name])
        return cls(node, arguments, values, node.meta.get("val"))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of a pointwise op's operands: a symbolic number among them is no size."""
        target = self.node.target
        return _numbers(target) if isinstance(target, torch._ops.OpOverload) else ()

    @property
    def op(self) -> str:
        return op_name(self.node)


def op_name(node: fx.Node) -> str:
    """Return an op's name as a person writes it, such as ``aten.topk``."""
    target: Any = node.args[1] if node.target is with_effects else node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[-1]}"
    if isinstance(target, Opaque):
        return target.name
    return getattr(target, "__name__", str(target))
