"""Run the layers of a network that its outputs need, each when its inputs are there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.network.inspect import LayerView, NetworkView, TensorView
from singlecard.reference.graph import graph_of, inputs_of, owner
from singlecard.reference.table import Call, evaluations
from singlecard.reference.types import TORCH_DTYPES, round_to, widen


@dataclass(slots=True)
class _Frame:
    """The values that live as long as the network runs, or as one iteration of a loop."""

    loop: int | None
    values: dict[int, Tensor] = field(default_factory=dict)


class Execution:
    """One run of a network.

    Layers are run on demand, from the outputs back: so only the branch of a conditional that is
    taken is computed, and inside a loop only what changes with it. A value is dropped when the last
    layer that needs it has run.
    """

    def __init__(self, view: NetworkView, feeds: Mapping[int, Tensor], device: torch.device):
        self._view = view
        self._graph = graph_of(view)
        self._device = device
        self._frames = [_Frame(None, dict(feeds))]
        self._left = dict(self._graph.uses)
        self._kept = {output.index for output in view.outputs}
        for layer in view.layers:
            # What a loop reads from outside is read again in each iteration.
            if any(self._graph.varying.get(output.index) for output in layer.outputs):
                self._kept.update(inputs_of(layer))

    def run(self) -> list[Tensor]:
        """Return the values of the network's outputs, in order."""
        self._check_assertions()
        outputs = [output.index for output in self._view.outputs]
        self._compute(outputs)
        return [self._value(index) for index in outputs]

    def _check_assertions(self) -> None:
        graph = self._graph
        for layer in self._view.layers:
            if layer.kind != "ASSERTION":
                continue
            needed = inputs_of(layer)
            if graph.guarded.isdisjoint(needed) and not any(map(graph.varying.get, needed)):
                self._compute(needed)
                self._evaluate(layer)

    def _compute(self, targets: Iterable[int]) -> None:
        stack = list(targets)
        while stack:
            index = stack[-1]
            if self._known(index):
                stack.pop()
                continue
            layer = self._graph.makers.get(index)
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

    def _needs(self, layer: LayerView) -> list[int]:
        if layer.kind != "CONDITIONAL_OUTPUT":
            return self._graph.required(layer)
        condition = self._graph.conditions[owner(layer, "conditional")]
        return [self._branch(layer)] if self._known(condition) else [condition]

    def _branch(self, layer: LayerView) -> int:
        condition = self._graph.conditions[owner(layer, "conditional")]
        taken, other = inputs_of(layer)
        return taken if bool(self._value(condition)) else other

    def _run(self, layer: LayerView) -> None:
        if layer.kind == "LOOP_OUTPUT":
            self._run_loop(owner(layer, "loop"))
        elif layer.kind == "CONDITIONAL_OUTPUT":
            self._store(layer.outputs[0], self._value(self._branch(layer)))
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
            None if tensor is None else self._value(tensor.index) for tensor in layer.inputs
        )
        if evaluation.widens:
            inputs = tuple(None if value is None else widen(value) for value in inputs)
        try:
            result = evaluation.function(Call(layer, inputs, self._device))
        except Exception as error:
            raise EvaluationError(f"layer {layer.name!r} ({layer.kind}): {error}") from error
        results = (result,) if isinstance(result, Tensor) else result or ()
        for output, value in zip(layer.outputs, results, strict=True):
            self._store(output, _checked(layer, output, round_to(value, output.dtype)))
        self._release(layer)

    def _release(self, layer: LayerView) -> None:
        """Drop the inputs that no other layer waits for."""
        for index in inputs_of(layer):
            self._left[index] -= 1
            if self._left[index] == 0 and index not in self._kept:
                self._frames[0].values.pop(index, None)

    def _run_loop(self, number: int) -> None:
        loop = self._graph.loops[number]
        limit = None if loop.count is None else int(self._value(loop.count))
        frame = _Frame(number)
        carried = [self._value(inputs_of(layer)[0]) for layer in loop.recurrences]
        collected: list[list[Tensor]] = [[] for _ in loop.outputs]
        self._frames.append(frame)
        iteration = 0
        while True:
            frame.values = {}
            for layer, value in zip(loop.recurrences, carried, strict=True):
                self._store(layer.outputs[0], value)
            if limit is not None and iteration >= limit:
                break
            if loop.condition is not None:
                self._compute([loop.condition])
                if not bool(self._value(loop.condition)):
                    break
            for layer in loop.iterators:
                self._store(layer.outputs[0], self._slice(layer, iteration, limit))
            back = [inputs_of(layer)[1] for layer in loop.recurrences]
            produced = [inputs_of(layer)[0] for layer in loop.outputs]
            self._compute([*back, *produced])
            carried = [self._value(index) for index in back]
            for values, index in zip(collected, produced, strict=True):
                values.append(self._value(index))
            iteration += 1
        recurring = {layer.outputs[0].index for layer in loop.recurrences}
        for layer, values in zip(loop.outputs, collected, strict=True):
            index = inputs_of(layer)[0]
            if layer.attributes["kind"] == "LAST_VALUE" and index in recurring:
                # The value with which the next iteration would have started.
                values.append(self._value(index))
        self._frames.pop()
        for layer, values in zip(loop.outputs, collected, strict=True):
            result = self._collect(layer, values)
            self._store(layer.outputs[0], _checked(layer, layer.outputs[0], result))

    def _slice(self, layer: LayerView, iteration: int, limit: int | None) -> Tensor:
        whole, axis = self._value(inputs_of(layer)[0]), layer.attributes["axis"]
        assert isinstance(axis, int)
        if layer.attributes["reverse"]:
            last = whole.shape[axis] if limit is None else limit
            return whole.select(axis, last - 1 - iteration)
        return whole.select(axis, iteration)

    def _collect(self, layer: LayerView, values: list[Tensor]) -> Tensor:
        """What a loop output hands out: the last value, or the values of all iterations."""
        kind, axis, output = layer.attributes["kind"], layer.attributes["axis"], layer.outputs[0]
        assert isinstance(axis, int)
        if kind == "LAST_VALUE":
            if not values:
                raise EvaluationError(
                    f"layer {layer.name!r}: the loop ran no iteration, so this has no last value"
                )
            return values[-1]
        length = int(self._value(inputs_of(layer)[1]))
        if values:
            shape = list(values[0].shape)
            shape.insert(axis, length)
        else:
            shape = [length if i == axis else max(n, 0) for i, n in enumerate(output.shape)]
        # What no iteration has written stays zero.
        whole = torch.zeros(shape, dtype=TORCH_DTYPES[output.dtype], device=self._device)
        for iteration, value in enumerate(values):
            place = length - 1 - iteration if kind == "REVERSE" else iteration
            whole.select(axis, place).copy_(value)
        return whole

    def _known(self, index: int) -> bool:
        return any(index in frame.values for frame in self._frames)

    def _value(self, index: int) -> Tensor:
        for frame in reversed(self._frames):
            if index in frame.values:
                return frame.values[index]
        raise EvaluationError(f"tensor {index} has no value yet")

    def _store(self, tensor: TensorView, value: Tensor) -> None:
        """Keep a value as long as it is valid: for one iteration of the innermost loop it needs."""
        loops = self._graph.varying.get(tensor.index, frozenset())
        for frame in reversed(self._frames):
            if frame.loop is None or frame.loop in loops:
                frame.values[tensor.index] = value
                return


def _checked(layer: LayerView, output: TensorView, value: Tensor) -> Tensor:
    """Compare a value with what TensorRT says of its type and dimensions."""
    fits = value.dtype == TORCH_DTYPES[output.dtype] and value.dim() == len(output.shape)
    sizes = zip(value.shape, output.shape, strict=False)
    if fits and all(declared in (-1, size) for size, declared in sizes):
        return value
    raise EvaluationError(
        f"layer {layer.name!r} ({layer.kind}) gave {value.dtype} {tuple(value.shape)} where "
        f"TensorRT declares {output.dtype} {output.shape}: please report this layer"
    )
