"""A compiled Program: segments in order, values between them, and inputs written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.results import laid_out, view_again
from singlecard.partition import Segment
from singlecard.runtime.runners import Runner


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what changes when a tensor is written to, or given other memory."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


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
        self._steps = [(segment, run, _retyped(segment, steps)) for segment, run in steps]
        self._frozen = [
            (place, tensor, _version(tensor)) for place, tensor in program.frozen.items()
        ]
        self._kept = {_memory(item) for item in self._constants.values() if item is not None}
        self._sizes = _size_evaluator(self._constants)

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
        for segment, run, retyped in self._steps:
            given = [values[node] if node in values else sizes(node) for node in segment.inputs]
            for place, dtype in retyped:
                given[place] = given[place].to(dtype)
            values.update(zip(segment.outputs, run(given), strict=True))
        computed = [self._value(item, values, sizes) for item in self._outputs]
        first, last = len(self._results), len(self._results) + len(self._mutations)
        given = [values[node] for node in self._placeholders]
        results = self._make_results(computed, given, computed[last:])
        self._write_back(args, computed[first:last])
        return results

    def _make_results(
        self, computed: Sequence[Any], given: Sequence[Any], sizes: Sequence[Any]
    ) -> list[Any]:
        """Give results the layout and the memory that eager PyTorch gives them."""
        taken = {_memory(arg) for arg in given if isinstance(arg, torch.Tensor)} | self._kept
        owners: dict[int, torch.Tensor] = {}
        results = []
        for value, result in zip(computed, self._results, strict=False):
            if result.source is not None:
                results.append(view_again(given[result.source], result.views, sizes))
                continue
            if result.owner is None:
                results.append(value)
                continue
            if result.owner not in owners:
                owner = laid_out(value, result.order)
                if owner.numel() and _memory(owner) in taken:
                    owner = owner.clone()  # rewrites made one of what are two in eager PyTorch
                taken.add(_memory(owner))
                owners[result.owner] = owner
            results.append(view_again(owners[result.owner], result.views, sizes))
        return results

    def _write_back(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        """Copy the new values of mutated inputs, none of which may be overwritten before.

        An input that an engine wrote to in place is its own new value already.
        """
        changes = [
            (args[place], value)
            for place, value in zip(self._mutations, values, strict=True)
            if value is not args[place]
        ]
        written = {_memory(target) for target, _ in changes}
        if len(written) > 1:
            changes = [
                (target, value.clone() if _memory(value) in written else value)
                for target, value in changes
            ]
        for target, value in changes:
            target.copy_(value)

    def _value(self, item: Any, values: dict[fx.Node, Any], sizes: Callable[[fx.Node], Any]) -> Any:
        if not isinstance(item, fx.Node):
            return item
        if item in self._constants:
            constant = self._constants[item]
            assert constant is not None
            return constant.to(item.meta["val"].device)
        return values[item] if item in values else sizes(item)


def _retyped(
    segment: Segment, steps: Sequence[tuple[Segment, Runner]]
) -> list[tuple[int, torch.dtype]]:
    """Return which inputs of a network PyTorch computes, and the types that the network takes.

    Some kernels give another type than PyTorch says of them while a graph is captured, such as
    those of batch norm for running statistics in FP16.
    """
    eager = {node for other, _ in steps if not other.lowered for node in other.outputs}
    return [
        (place, node.meta["val"].dtype)
        for place, node in enumerate(segment.inputs)
        if segment.lowered and node in eager and isinstance(node.meta["val"], torch.Tensor)
    ]


def _size_evaluator(
    constants: dict[fx.Node, torch.Tensor | None],
) -> Callable[[dict[fx.Node, Any]], Callable[[fx.Node], Any]]:
    """Return what computes symbolic sizes of a call from the shapes of its inputs.

    A size may also be the ``item()`` of a frozen buffer, where Dynamo captures scalars.
    """

    def for_call(values: dict[fx.Node, Any]) -> Callable[[fx.Node], Any]:
        def evaluate(node: fx.Node) -> Any:
            if node in constants:
                return constants[node]
            if node not in values:
                args = fx.map_arg(node.args, evaluate)
                kwargs = fx.map_arg(node.kwargs, evaluate)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            return values[node]

        return evaluate

    return for_call
