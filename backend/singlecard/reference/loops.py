"""Run a loop of a network, iteration by iteration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from singlecard.network.inspect import LayerView
from singlecard.reference.graph import Loop, inputs_of
from singlecard.reference.types import TORCH_DTYPES

if TYPE_CHECKING:
    from singlecard.reference.execution import Execution


def run_loop(execution: Execution, number: int) -> None:
    """Run all iterations of a loop and store the values of its outputs."""
    loop = execution.graph.loops[number]
    limit = None if loop.count is None else int(execution.value(loop.count))
    carried = [execution.value(inputs_of(layer)[0]) for layer in loop.recurrences]
    joined = [layer for layer in loop.outputs if layer.attributes["kind"] != "LAST_VALUE"]
    history: list[list[Tensor]] = [[] for _ in joined]
    back = [inputs_of(layer)[1] for layer in loop.recurrences]
    wanted = [inputs_of(layer)[0] for layer in joined]
    iteration = 0
    while True:
        execution.enter(number)
        for layer, value in zip(loop.recurrences, carried, strict=True):
            execution.store(layer, layer.outputs[0], value)
        if not _continues(execution, loop, iteration, limit):
            break
        for layer in loop.iterators:
            piece = _slice(layer, execution.value(inputs_of(layer)[0]), iteration, limit)
            execution.store(layer, layer.outputs[0], piece)
        execution.compute([*back, *wanted])
        carried = [execution.value(index) for index in back]
        for values, index in zip(history, wanted, strict=True):
            values.append(execution.value(index))
        execution.leave()
        iteration += 1
    # A last value is always that of a recurrence: with it the next iteration would have started.
    results = {
        id(layer): execution.value(inputs_of(layer)[0])
        for layer in loop.outputs
        if layer.attributes["kind"] == "LAST_VALUE"
    }
    execution.leave()
    for layer, values in zip(joined, history, strict=True):
        length = int(execution.value(inputs_of(layer)[1]))
        results[id(layer)] = _join(layer, values, length, execution.device)
    for layer in loop.outputs:
        execution.store(layer, layer.outputs[0], results[id(layer)])


def _continues(execution: Execution, loop: Loop, iteration: int, limit: int | None) -> bool:
    if limit is not None and iteration >= limit:
        return False
    if loop.condition is None:
        return True
    execution.compute([loop.condition])
    return bool(execution.value(loop.condition))


def _slice(layer: LayerView, whole: Tensor, iteration: int, limit: int | None) -> Tensor:
    """What an iterator shows of its tensor in one iteration."""
    axis = layer.attributes["axis"]
    assert isinstance(axis, int)
    if layer.attributes["reverse"]:
        last = whole.shape[axis] if limit is None else limit
        return whole.select(axis, last - 1 - iteration)
    return whole.select(axis, iteration)


def _join(layer: LayerView, values: list[Tensor], length: int, device: torch.device) -> Tensor:
    """The values of all iterations side by side in a new dimension."""
    axis, output = layer.attributes["axis"], layer.outputs[0]
    assert isinstance(axis, int)
    if values:
        shape = list(values[0].shape)
        shape.insert(axis, length)
    else:
        shape = [length if i == axis else max(size, 0) for i, size in enumerate(output.shape)]
    # What no iteration has written stays zero.
    whole = torch.zeros(shape, dtype=TORCH_DTYPES[output.dtype], device=device)
    for iteration, value in enumerate(values):
        backwards = layer.attributes["kind"] == "REVERSE"
        whole.select(axis, length - 1 - iteration if backwards else iteration).copy_(value)
    return whole
