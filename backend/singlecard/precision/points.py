"""The places of a Program where values could be quantized, under names that survive a new capture.

A name is the path of the module, a colon and the op, such as
``encoder.layer.0.attention.self.query:linear``; the second op of that kind in the same module has
``.1`` behind it. Paths and the order of ops come from the model, so that captures on other devices,
with other batch sizes, or with dynamic sizes, give the same names.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from torch import fx

from singlecard.capture.ops import attention
from singlecard.capture.program import Program, module_path
from singlecard.hashing import hasher_for
from singlecard.lowering.call import op_name

aten = torch.ops.aten

#: Products of two values that are both computed at run time.
_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.matmul.default)


@dataclass(frozen=True, eq=False)
class Point:
    """An op whose operands can be quantized.

    Attributes:
        name: see above.
        node: the op.
        op: ``linear``, ``convolution``, ``product``, ``attention``, ``embedding``, or ``residual``:
            an addition of a value that a linear layer or a convolution before it reads too.
        operands: for each value that is computed at run time and would be quantized, its tensor's
            name and the value. Attention's last is the probabilities, which are no node: None.
        weight: the constant weight, or None.
    """

    name: str
    node: fx.Node
    op: str
    operands: tuple[tuple[str, fx.Node | None], ...]
    weight: torch.Tensor | None

    def signature(self) -> dict[str, object]:
        """Return what must not change for scales to stay valid, as plain values."""
        result: dict[str, object] = {"op": self.op, "tensors": [name for name, _ in self.operands]}
        if self.weight is not None:
            result["shape"] = list(self.weight.shape)
            result["weights"] = _digest(self.weight)
        return result


def points_of(program: Program) -> tuple[Point, ...]:
    """Find the points of a Program that was simplified and is in its own precision still."""
    taken: dict[str, int] = {}
    tensors: dict[fx.Node, str] = {}
    weighted: set[fx.Node] = set()
    found: list[Point] = []
    for node in program.calls():
        residual = _residual(node, weighted)
        kind = _kind(program, node) if residual is None else "residual"
        if kind is None:
            continue
        base = f"{module_path(node) or 'model'}:{kind}"
        count = taken.get(base, 0)
        taken[base] = count + 1
        name = f"{base}.{count}" if count else base
        roles = _ROLES[kind]
        operands: list[tuple[str, fx.Node | None]] = []
        read = node.args if residual is None else (residual,)
        for role, value in zip(roles, read, strict=False):
            assert isinstance(value, fx.Node)
            if kind in ("linear", "convolution"):
                weighted.add(value)
            operands.append((tensors.setdefault(value, f"{name}/{role}"), value))
        weight = None
        if kind == "attention":
            operands.append((f"{name}/probabilities", None))
        elif kind not in ("product", "residual"):
            place = 0 if kind == "embedding" else 1
            weight = program.constant(node.args[place])  # type: ignore[arg-type]
        found.append(Point(name, node, kind, tuple(operands), weight))
    return tuple(found)


def names_of(program: Program) -> dict[fx.Node, str]:
    """Name every op of a Program by its module and its kind, as points are named."""
    taken: dict[str, int] = {}
    result: dict[fx.Node, str] = {}
    for node in program.calls():
        base = f"{module_path(node) or 'model'}:{op_name(node).partition('.')[2] or op_name(node)}"
        count = taken.get(base, 0)
        taken[base] = count + 1
        result[node] = f"{base}.{count}" if count else base
    return result


def is_named(name: str, wanted: Sequence[str]) -> bool:
    """Tell whether an op is among names of ops, or of modules that it lies in."""
    path = name.partition(":")[0]
    return any(name == item or path == item or path.startswith(f"{item}.") for item in wanted)


_ROLES: dict[str, Sequence[str]] = {
    "linear": ("input",),
    "convolution": ("input",),
    "product": ("first", "second"),
    "attention": ("query", "key", "value"),
    "embedding": (),
    "residual": ("input",),
}


def _residual(node: fx.Node, weighted: Set[fx.Node]) -> fx.Node | None:
    """Return the operand of an addition that a layer with weights has read before it."""
    if node.target is not aten.add.Tensor or node.meta["val"].dtype not in _COMPUTED:
        return None
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    return next((value for value in (second, first) if value in weighted), None)


def _kind(program: Program, node: fx.Node) -> str | None:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or value.dtype not in _COMPUTED:
        return None
    if node.target is aten.linear.default or node.target is aten.convolution.default:
        if program.constant(node.args[1]) is None:  # type: ignore[arg-type]
            return None
        if node.target is aten.linear.default:
            return "linear" if node.args[0].meta["val"].ndim > 1 else None  # type: ignore[union-attr]
        return None if node.args[6] else "convolution"
    if node.target is attention:
        return "attention"
    if node.target is aten.embedding.default:
        return "embedding" if program.constant(node.args[0]) is not None else None  # type: ignore[arg-type]
    if node.target in _PRODUCTS:
        both = all(isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in node.args)
        return "product" if both else None
    return None


_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)


def _digest(weight: torch.Tensor) -> str:
    """Return 16 hexadecimal digits of a weight's values, whatever type they are held in."""
    values = weight.detach().to("cpu", torch.float32).contiguous()
    hasher = hasher_for(values.nbytes)
    hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest(length=8)
