"""Values whose last digits count: places, angles and what is compared stay in FP32.

FP16 has 11 binary digits and BF16 has 8. A place on an image of 2048 columns, an angle of many
turns, or a time step of 998.4 needs more; features that a model learned do not. So from each op
that reads places the way is followed back, to inputs of the graph, to integers, to long sums: what
lies on it is computed in FP32. It ends where a product over learned weights, a convolution or a
norm gives features: a flow that a convolution predicts is in the low type, its sum with a grid of
places in FP32. Forward, what follows from such values alone stays in FP32 too, up to a product.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.results import is_view
from singlecard.capture.traits import (
    LEARNED,
    READS_ORDER,
    READS_PLACES,
    READS_POSITIONS,
    SUMS_OVER,
)
from singlecard.lowering.call import Call, tensors_in

aten = torch.ops.aten

#: Elements of a product's sum up to which it is geometry, such as a rotation, a projection or
#: frequencies of a coordinate, and no layer.
_GEOMETRY = 4

#: Reductions whose sum can leave FP16's range, or lose small terms.
FULL_PRECISION = frozenset(
    {
        aten.mean.dim,
        aten.mean.default,
        aten.sum.dim_IntList,
        aten.sum.default,
        aten.prod.dim_int,
        aten.var.correction,
        aten.var_mean.correction,
        aten.cumsum.default,
        aten.cumprod.default,
        aten.logsumexp.default,
        aten.linalg_vector_norm.default,
    }
)


def is_learned(node: fx.Node) -> bool:
    """Tell whether an op gives features, whatever it is given."""
    if node.target in SUMS_OVER:
        place, axis = SUMS_OVER[node.target]
        operand: Any = node.args[place]
        extent = operand.meta["val"].shape[axis]
        return not isinstance(extent, int) or extent > _GEOMETRY
    return node.target in LEARNED


@dataclass(frozen=True)
class Places:
    """Values that stay in FP32 for the sake of their last digits; inputs are among them.

    Attributes:
        kept: on the way to what is read as a place, and what follows from such values alone.
        integral: what follows from integers alone.
    """

    kept: frozenset[fx.Node]
    integral: frozenset[fx.Node]

    def __contains__(self, node: object) -> bool:
        return node in self.kept or node in self.integral


def places_of(program: Program) -> Places:
    """Return the values of a Program whose last digits count."""
    return _Places(program).found()


def read_places(node: fx.Node) -> list[fx.Node]:
    """Return the arguments of an op, in FP32, from which it reads places."""
    return [arg for arg in _read(node) if _is_fp32(arg)]


def _read(node: fx.Node) -> Iterator[fx.Node]:
    if node.target is aten._to_copy.default and not _is_float(node):
        yield from node.all_input_nodes
        return
    if node.target is aten.sub.Tensor and _is_of_one(node):
        yield from node.all_input_nodes
        return
    names = READS_PLACES.get(node.target, ())
    if not names or (node.target in READS_ORDER and not _second_is_read(node)):
        return
    arguments = Call.of(node).arguments
    for name in names:
        if isinstance(arguments.get(name), fx.Node):
            yield arguments[name]


def _is_of_one(difference: fx.Node) -> bool:
    """Tell whether elements of one value are taken from each other: what they share cancels."""
    first, second = (_owner(arg) for arg in difference.args[:2])
    return first is second


def _owner(value: Any) -> Any:
    while isinstance(value, fx.Node) and value.op == "call_function" and is_view(value):
        value = value.args[0]
    return value


def _second_is_read(node: fx.Node) -> bool:
    return any(user.target is not operator.getitem or user.args[1] == 1 for user in node.users)


class _Places:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.calls = list(program.calls())
        #: What follows from integers alone.
        self.integral: set[fx.Node] = set()
        #: Values with more digits than a low type has, and those with constants of that kind.
        self.precise: set[fx.Node] = set()
        self.with_constants: set[fx.Node] = set()

    def found(self) -> Places:
        for node in self.program.graph.nodes:
            self.look_at(node)
        kept = self.demanded(self.precise, self.calls)
        positions = [node for node in self.calls if _reads_positions(node)]
        kept |= self.demanded(self.precise | self.with_constants, positions)
        for node in self.calls:
            computed, read = _computed(node), set(read_places(node))
            follows = all(arg in kept or arg in self.integral for arg in computed)
            if computed and follows and not _ends(node):
                kept.add(node)  # what follows from places alone is one still
            elif read & kept and read.issuperset(computed):
                kept.add(node)
        return Places(frozenset(kept - self.integral), frozenset(self.integral))

    def look_at(self, node: fx.Node) -> None:
        """Note whether a value follows from integers, and whether a low type would lose digits."""
        if node.op == "placeholder" and _is_fp32(node):
            self.precise.add(node)
        elif node.op == "get_attr" and _is_fp32(node) and node.meta["val"].ndim:
            self.with_constants.add(node)
        if node.op != "call_function":
            return
        given = node.all_input_nodes
        floats, computed = [arg for arg in given if _is_float(arg)], _computed(node)
        made = not floats and _is_float(node)
        if made or (computed and not _ends(node) and self.integral.issuperset(computed)):
            self.integral.add(node)
        if is_learned(node):
            return
        if node.target in FULL_PRECISION or node in self.integral or self.precise & set(given):
            self.precise.add(node)
        if self.with_constants & set(given):
            self.with_constants.add(node)

    def demanded(self, digits: Set[fx.Node], readers: Iterable[fx.Node]) -> set[fx.Node]:
        """Return the values with digits that lie on the way to readers, from the last one back."""
        wanted = {arg for node in readers for arg in read_places(node) if _counts(arg, digits)}
        for node in reversed(self.calls):
            if node in wanted:
                wanted |= {arg for arg in node.all_input_nodes if _counts(arg, digits)}
        return wanted


def _counts(node: fx.Node, digits: Set[fx.Node]) -> bool:
    return node in digits and _is_fp32(node) and not is_learned(node)


def _reads_positions(node: fx.Node) -> bool:
    return node.target in READS_POSITIONS or node.target is aten._to_copy.default


def _ends(node: fx.Node) -> bool:
    """Tell whether what follows from places is none any more: a layer begins here."""
    return is_learned(node) or node.target in (aten.linear.default, aten.addmm.default)


def _computed(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if _is_float(arg) and arg.op != "get_attr"]


def _is_float(node: fx.Node) -> bool:
    return any(value.dtype.is_floating_point for value in tensors_in(node.meta.get("val")))


def _is_fp32(node: fx.Node) -> bool:
    return any(value.dtype == torch.float32 for value in tensors_in(node.meta.get("val")))
