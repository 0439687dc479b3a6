"""Which ops of a model hold values that FP16 cannot: too large for it, or too small."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from singlecard.capture.ops import attention
from singlecard.capture.program import Program
from singlecard.precision.points import names_of

aten = torch.ops.aten

#: Largest magnitude of FP16.
LARGEST = 65504.0

#: Smallest magnitude that FP16 holds with all its digits.
SMALLEST = 2.0**-14

#: Beyond this, a magnitude stands for "never" in a mask, and says nothing of a value's range.
NEVER = 1e30

_PRODUCTS = frozenset(
    {aten.linear.default, aten.addmm.default, aten.convolution.default, aten.mm.default}
    | {aten.bmm.default, aten.matmul.default}
)

#: Ops between a mask and the softmax that reads it.
_PASSING = frozenset(
    {
        aten._to_copy.default,
        aten.add.Tensor,
        aten.clone.default,
        aten.expand.default,
        aten.masked_fill.Scalar,
        aten.permute.default,
        aten.slice.Tensor,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.view.default,
        aten.where.self,
    }
)

#: Ops that compute with a number of the model's code, which is rounded as values are.
_WITH_NUMBERS = frozenset(
    getattr(getattr(aten, name), kind)
    for name in ("add", "sub", "mul", "div", "rsub")
    for kind in ("Tensor", "Scalar")
)


@dataclass
class Ranges:
    """The ranges of a model's FP32 values.

    Attributes:
        largest: for each op, by name, the largest magnitude of its results; in the order of the
            model.
        readers: for each op, the names of the ops that read its results.
        numbers: ops with a constant beyond FP16's range.
        given: for each input of the model, its largest magnitude; `readers` has its readers.
    """

    largest: dict[str, float] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)
    numbers: set[str] = field(default_factory=set)
    given: dict[str, float] = field(default_factory=dict)

    def beyond(self) -> list[str]:
        """Return ops that must not compute in FP16, in the order of the model.

        Those whose results leave its range, or are too small for it in every call, and those that
        read such a result.
        """
        found = set(self.numbers)
        for name, largest in self.largest.items():
            if largest > LARGEST or 0 < largest < SMALLEST:
                found |= {name, *self.readers[name]}
        for name, largest in self.given.items():
            if largest > LARGEST or 0 < largest < SMALLEST:
                found |= self.readers[name]
        return [name for name in self.largest if name in found]

    def watch(self, program: Program) -> Iterator[tuple[fx.Node, Callable[[torch.Tensor], None]]]:
        """Yield values of a Program, and for each what must see it at run time."""
        names = names_of(program)
        self.largest.update({name: self.largest.get(name, 0.0) for name in names.values()})
        integers = _from_integers(program)
        all_masks = _masks(program)
        for node in program.graph.nodes:
            if node.op == "output" or node in integers or not _is_float32(node):
                continue
            masks = node in all_masks
            readers = {names[user] for user in node.users if user in names}
            if node.op == "get_attr":
                if not masks and _largest(program.constant(node)) > LARGEST:
                    self.numbers |= readers
                continue
            if not masks and _has_large_number(node):
                self.numbers.add(names[node])
            if node.op == "placeholder":
                place, name = self.given, f"input {node.name}"
            else:
                # An item of a tuple has the range of what made it.
                maker: Any = node.args[0] if node.target is operator.getitem else node
                place, name = self.largest, names[maker]
            place.setdefault(name, 0.0)
            self.readers.setdefault(name, set()).update(readers)
            yield node, _look_at(place, name, masks)


def _look_at(place: dict[str, float], name: str, masks: bool) -> Callable[[torch.Tensor], None]:
    def look(value: torch.Tensor) -> None:
        largest = _largest(value, signed=masks)
        if not masks or largest > LARGEST:
            place[name] = max(place[name], largest)

    return look


def _largest(value: torch.Tensor | None, signed: bool = False) -> float:
    """Return the largest magnitude that is no mask's "never"; NaN counts as little.

    Args:
        value: of any shape.
        signed: the largest number instead; what is far below zero becomes nothing in a softmax.
    """
    if value is None or not value.numel():
        return 0.0
    sizes = value.detach() if signed else value.detach().abs()
    largest = float(sizes.max())
    if not largest < NEVER:
        sizes = sizes[sizes < NEVER]
        largest = float(sizes.max()) if sizes.numel() else 0.0
    return largest


def _is_float32(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _has_large_number(node: fx.Node) -> bool:
    return node.target in _WITH_NUMBERS and any(
        isinstance(arg, (int, float)) and LARGEST < abs(arg) < NEVER for arg in node.args
    )


def _from_integers(program: Program) -> set[fx.Node]:
    """Return values that follow from integers alone; they stay in FP32, and are cut where read."""
    found: set[fx.Node] = set()
    for node in program.calls():
        inputs = [arg for arg in node.all_input_nodes if _is_floating(arg)]
        computed = [arg for arg in inputs if arg.op != "get_attr"]
        follows = bool(computed) and all(arg in found for arg in computed)
        if not inputs or (follows and node.target not in _PRODUCTS):
            found.add(node)
    return found


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    items = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(item, torch.Tensor) and item.is_floating_point() for item in items)


def _masks(program: Program) -> set[fx.Node]:
    """Return values that are added to attention's scores, or are such sums, and nothing else.

    From the last to the first, so that what uses a value is known before it.
    """
    found: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        if node.target in _PRODUCTS or not node.users:
            continue
        if all(
            user.target is aten._softmax.default
            or (user.target is attention and user.args[3] is node and node not in user.args[:3])
            or (user.target in _PASSING and user in found)
            for user in node.users
        ):
            found.add(node)
    return found
