"""Run the layers of a network that its outputs need, each when its inputs are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.network.inspect import LayerView, NetworkView, TensorView
from singlecard.reference.graph import graph_of, inputs_of, owner
from singlecard.reference.loops import run_loop
from singlecard.reference.table import Call, evaluations
from singlecard.reference.types import round_to, widen


@dataclass(slots=True)
class Frame:
    """The values that live as long as the network runs, or as one iteration of a loop."""

    loop: int | None
    values: dict[int, Tensor] = field(default_factory=dict)


class Execution:
    """One run of a network.

    Layers are run on demand, from the outputs back: so only the branch of a conditional that is
    taken is computed, and inside a loop only what changes with it. A value is dropped when the last
    layer that needs it has run.
    """

    def __init__(
        self, view: NetworkView, feeds: Mapping[int, Tensor], device: torch.device
    ) -> None:
        self.graph = graph_of(view)
        self.device = device
        self._view = view
        self._frames = [Frame(None, dict(feeds))]
        self._left = dict(self.graph.uses)
        self._kept = {output.index for output in view.outputs}
        for layer in view.layers:
            # What a loop reads from outside is read again in each iteration.
            if any(self.graph.varying.get(output.index) for output in layer.outputs):
                self._kept.update(inputs_of(layer))

    def run(self) -> list[Tensor]:
        """Return the values of the network's outputs, in order."""
        self._check_assertions()
        outputs = [output.index for output in self._view.outputs]
        self.compute(outputs)
        return [self.value(index) for index in outputs]

    def compute(self, targets: Iterable[int]) -> None:
        """Run whatever is needed for the targets to have values."""
        stack = list(targets)
        while stack:
            index = stack[-1]
            if self._known(index):
                stack.pop()
                continue
            layer = self.graph.makers.get(index)
            if layer is None or layer.kind in ("RECURRENCE", "ITERATOR"):
                raise EvaluationError(
                    f"tensor {index} has no value outside of its loop: take it out of the loop "
                    "with a loop output"
                )
            missing = [need for need in self._needs(layer) if not self._known(need)]
            if missing:
                stack += missing
            else:
                stack.pop()
                self._run(layer)

    def value(self, index: int) -> Tensor:
        """The value of a tensor that has one."""
        for frame in reversed(self._frames):
            if index in frame.values:
                return frame.values[index]
        raise EvaluationError(f"tensor {index} has no value yet")

    def store(self, layer: LayerView, output: TensorView, value: Tensor) -> None:
        """Keep a value as long as it is valid: for one iteration of the innermost loop it needs."""
        value = _checked(layer, output, round_to(value, output.dtype))
        loops = self.graph.varying.get(output.index, frozenset())
        frame = next(f for f in reversed(self._frames) if f.loop is None or f.loop in loops)
        frame.values[output.index] = value

    def enter(self, loop: int) -> None:
        """Start an iteration of a loop."""
        self._frames.append(Frame(loop))

    def leave(self) -> None:
        """End the iteration that was started last, and drop its values."""
        self._frames.pop()

    def _known(self, index: int) -> bool:
        return any(index in frame.values for frame in self._frames)

    def _needs(self, layer: LayerView) -> list[int]:
        if layer.kind != "CONDITIONAL_OUTPUT":
            return self.graph.required(layer)
        condition = self.graph.conditions[owner(layer, "conditional")]
        return [self._branch(layer)] if self._known(condition) else [condition]

    def _branch(self, layer: LayerView) -> int:
        condition = self.graph.conditions[owner(layer, "conditional")]
        taken, other = inputs_of(layer)
        return taken if bool(self.value(condition)) else other

    def _run(self, layer: LayerView) -> None:
        if layer.kind == "LOOP_OUTPUT":
            run_loop(self, owner(layer, "loop"))
        elif layer.kind == "CONDITIONAL_OUTPUT":
            self.store(layer, layer.outputs[0], self.value(self._branch(layer)))
        else:
            self._evaluate(layer)

    def _evaluate(self, layer: LayerView) -> None:
        evaluation = evaluations().get(layer.kind)
        if evaluation is None:
            raise EvaluationError(
                f"layer {layer.name!r} is of kind {layer.kind}, which has no meaning outside of an "
                "engine: leave this part in PyTorch, or replace the layer by others"
            )
        inputs = tuple(
            None if tensor is None else self.value(tensor.index) for tensor in layer.inputs
        )
        if evaluation.widens:
            inputs = tuple(None if value is None else widen(value) for value in inputs)
        try:
            result = evaluation.function(Call(layer, inputs, self.device))
        except Exception as error:
            raise EvaluationError(f"layer {layer.name!r} ({layer.kind}): {error}") from error
        results = (result,) if isinstance(result, Tensor) else result or ()
        for output, value in zip(layer.outputs, results, strict=True):
            self.store(layer, output, value)
        self._release(layer)

    def _release(self, layer: LayerView) -> None:
        """Drop the inputs that no other layer waits for."""
        for index in inputs_of(layer):
            self._left[index] -= 1
            if self._left[index] == 0 and index not in self._kept:
                self._frames[0].values.pop(index, None)

    def _check_assertions(self) -> None:
        """Run the assertions, but for those that only hold inside a branch or a loop."""
        graph = self.graph
        for layer in self._view.layers:
            if layer.kind != "ASSERTION":
                continue
            needed = inputs_of(layer)
            if graph.guarded.isdisjoint(needed) and not any(map(graph.varying.get, needed)):
                self.compute(needed)
                self._evaluate(layer)


def _checked(layer: LayerView, output: TensorView, value: Tensor) -> Tensor:
    """Compare a value with what TensorRT says of its dimensions."""
    sizes = zip(value.shape, output.shape, strict=False)
    if value.dim() == len(output.shape) and all(said in (-1, size) for size, said in sizes):
        return value
    raise EvaluationError(
        f"layer {layer.name!r} ({layer.kind}) gave the shape {tuple(value.shape)} where TensorRT "
        f"declares {output.shape}: please report this layer"
    )
