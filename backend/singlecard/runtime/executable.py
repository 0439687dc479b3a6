"""A compiled Program: segments in order, values between them, and inputs written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.partition import Segment
from singlecard.runtime.runners import Runner


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class Executable:
    """Calls with AOTAutograd's flat arguments; returns the flat results."""

    def __init__(self, program: Program, steps: Sequence[tuple[Segment, Runner]]) -> None:
        self._positions = program.positions
        self._placeholders = program.placeholders
        self._constants = {
            node: program.constant(node) for node in program.graph.find_nodes(op="get_attr")
        }
        self._outputs = program.outputs
        self._results = program.results
        self._mutations = program.mutations
        self._steps = steps
        self._frozen = [
            (place, tensor, _version(tensor)) for place, tensor in program.frozen.items()
        ]
        self._sizes = _size_evaluator(program)

    def is_current(self, args: Sequence[Any]) -> bool:
        """Tell whether the weights in ``args`` are the frozen ones, unchanged since."""
        return all(
            args[place] is tensor and _version(tensor) == version
            for place, tensor, version in self._frozen
        )

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        values: dict[fx.Node, Any] = {
            node: args[place]
            for node, place in zip(self._placeholders, self._positions, strict=True)
        }
        sizes = self._sizes(values)
        for segment, run in self._steps:
            given = [values[node] if node in values else sizes(node) for node in segment.inputs]
            values.update(zip(segment.outputs, run(given), strict=True))
        results = [self._value(item, values, sizes) for item in self._outputs]
        for place, value in zip(self._mutations, results[self._results :], strict=True):
            args[place].copy_(value)
        return results[: self._results]

    def _value(self, item: Any, values: dict[fx.Node, Any], sizes: Callable[[fx.Node], Any]) -> Any:
        if not isinstance(item, fx.Node):
            return item
        if item in self._constants:
            constant = self._constants[item]
            assert constant is not None
            # A fresh tensor each time, as eager makes one: a caller may write into it.
            return constant.to(item.meta["val"].device, copy=True)
        return values[item] if item in values else sizes(item)


def _size_evaluator(program: Program) -> Callable[[dict[fx.Node, Any]], Callable[[fx.Node], Any]]:
    """Return what computes symbolic sizes of a call from the shapes of its inputs."""

    def for_call(values: dict[fx.Node, Any]) -> Callable[[fx.Node], Any]:
        def evaluate(node: fx.Node) -> Any:
            if node not in values:
                args = fx.map_arg(node.args, evaluate)
                kwargs = fx.map_arg(node.kwargs, evaluate)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return values[node]

        return evaluate

    return for_call
