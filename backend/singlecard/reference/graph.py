"""What execution must know of a network before it starts: makers, uses, loops and conditionals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from singlecard.network.inspect import LayerView, NetworkView

_LOOP_KINDS = frozenset({"TRIP_LIMIT", "ITERATOR", "RECURRENCE", "LOOP_OUTPUT"})


@dataclass(frozen=True, slots=True)
class Loop:
    """The boundary layers of one loop.

    Attributes:
        count: the tensor with the largest number of iterations, None if only a condition ends it.
        condition: the tensor that must be true for an iteration to run, None if there is none.
        recurrences: layers that carry a value from one iteration to the next.
        iterators: layers that take one slice of a tensor in each iteration.
        outputs: layers that hand a value out of the loop.
    """

    count: int | None
    condition: int | None
    recurrences: tuple[LayerView, ...]
    iterators: tuple[LayerView, ...]
    outputs: tuple[LayerView, ...]

    def from_outside(self) -> list[int]:
        """The tensors that must be there before the loop starts."""
        layers = [*self.recurrences, *self.iterators]
        needed = [layer.inputs[0] for layer in layers]
        needed += [layer.inputs[1] for layer in self.outputs if len(layer.inputs) > 1]
        found = [tensor.index for tensor in needed if tensor is not None]
        return found if self.count is None else [self.count, *found]


@dataclass(frozen=True, slots=True)
class Graph:
    """A network, with its layers found by the tensors they make.

    Attributes:
        makers: the layer that makes a tensor.
        uses: how many inputs of layers a tensor is.
        loops: the loops by their number.
        varying: for each tensor that changes from one iteration of a loop to the next, the loops
            for which it does.
        conditions: the tensor that chooses the branch, by the number of the conditional.
        guarded: tensors that only exist in one branch of a conditional.
    """

    makers: Mapping[int, LayerView]
    uses: Mapping[int, int]
    loops: Mapping[int, Loop]
    varying: Mapping[int, frozenset[int]]
    conditions: Mapping[int, int]
    guarded: frozenset[int]

    def required(self, layer: LayerView) -> list[int]:
        """The tensors a layer needs before it can run, but for the branches of a conditional."""
        if layer.kind == "LOOP_OUTPUT":
            return self.loops[owner(layer, "loop")].from_outside()
        return inputs_of(layer)


def owner(layer: LayerView, role: str) -> int:
    """The number of the loop or conditional that a boundary layer belongs to."""
    number = layer.attributes[role]
    assert isinstance(number, int)
    return number


def inputs_of(layer: LayerView) -> list[int]:
    """The indices of the tensors that a layer is given."""
    return [tensor.index for tensor in layer.inputs if tensor is not None]


def graph_of(view: NetworkView) -> Graph:
    """Return what execution must know of a network."""
    makers = {output.index: layer for layer in view.layers for output in layer.outputs}
    uses = Counter(index for layer in view.layers for index in inputs_of(layer))
    conditions = {
        owner(layer, "conditional"): inputs_of(layer)[0]
        for layer in view.layers
        if layer.kind == "CONDITION"
    }
    loops = _loops(view)
    varying = _varying(view, loops, conditions) if loops else {}
    guarded = _guarded(view) if conditions else frozenset()
    return Graph(makers, uses, loops, varying, conditions, guarded)


def _loops(view: NetworkView) -> dict[int, Loop]:
    parts: dict[int, list[LayerView]] = defaultdict(list)
    for layer in view.layers:
        if layer.kind in _LOOP_KINDS:
            parts[owner(layer, "loop")].append(layer)
    loops = {}
    for number, layers in parts.items():
        limits = {
            layer.attributes["kind"]: inputs_of(layer)[0]
            for layer in layers
            if layer.kind == "TRIP_LIMIT"
        }
        recurrences, iterators, outputs = (
            tuple(layer for layer in layers if layer.kind == kind)
            for kind in ("RECURRENCE", "ITERATOR", "LOOP_OUTPUT")
        )
        loops[number] = Loop(
            limits.get("COUNT"), limits.get("WHILE"), recurrences, iterators, outputs
        )
    return loops


def _varying(
    view: NetworkView, loops: Mapping[int, Loop], conditions: Mapping[int, int]
) -> dict[int, frozenset[int]]:
    """Follow the change from recurrences and iterators until nothing new is reached.

    A loop as a whole changes with every outer loop that any of its boundary layers depends on.
    """
    varying: dict[int, frozenset[int]] = {}
    nothing: frozenset[int] = frozenset()
    of_loop = dict.fromkeys(loops, nothing)
    changed = True
    while changed:
        changed = False
        for layer in view.layers:
            sources = inputs_of(layer)
            if layer.kind == "CONDITIONAL_OUTPUT":
                sources.append(conditions[owner(layer, "conditional")])
            reached = nothing.union(*(varying.get(index, nothing) for index in sources))
            if layer.kind in _LOOP_KINDS:
                number = owner(layer, "loop")
                outer = of_loop[number] | (reached - {number})
                changed |= outer != of_loop[number]
                of_loop[number] = outer
                reached = outer if layer.kind == "LOOP_OUTPUT" else outer | {number}
            for output in layer.outputs:
                if varying.get(output.index, nothing) != reached:
                    varying[output.index] = reached
                    changed = True
    return varying


def _guarded(view: NetworkView) -> frozenset[int]:
    guarded: set[int] = set()
    before = -1
    while len(guarded) > before:
        before = len(guarded)
        for layer in view.layers:
            inside = layer.kind == "CONDITIONAL_INPUT" or not guarded.isdisjoint(inputs_of(layer))
            if inside and layer.kind != "CONDITIONAL_OUTPUT":
                guarded.update(output.index for output in layer.outputs)
    return frozenset(guarded)
