"""A compiled Program: segments in order, values between them, and inputs written back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from singlecard.capture.program import Program
from singlecard.capture.results import laid_out, view_again
from singlecard.partition import Segment
from singlecard.runtime.runners import Runner
from singlecard.runtime.wiring import Slot, Wiring, map_slots, wiring_of


def _version(tensor: torch.Tensor) -> tuple[int, int]:
    """Return what changes when a tensor is written to, or given other memory."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


class Executable:
    """Calls with AOTAutograd's flat arguments; returns the flat results."""

    def __init__(
        self, wiring: Wiring, runners: Sequence[Runner], weights: Sequence[torch.Tensor]
    ) -> None:
        """Prepare to run.

        Args:
            wiring: how segments hang together.
            runners: for each step, what runs it.
            weights: the tensors that were compiled in, in the order of ``wiring.frozen``.
        """
        self.wiring = wiring
        self._steps = list(zip(wiring.steps, runners, strict=True))
        self._frozen = [
            (place, tensor, _version(tensor))
            for place, tensor in zip(wiring.frozen, weights, strict=True)
        ]
        self._kept = {_memory(item.value) for item in wiring.constants.values()}

    @classmethod
    def of(cls, program: Program, steps: Sequence[tuple[Segment, Runner]]) -> Executable:
        """Return what runs a Program that was cut into segments."""
        wiring = wiring_of(program, [segment for segment, _ in steps])
        return cls(wiring, [run for _, run in steps], list(program.frozen.values()))

    def is_current(self, args: Sequence[Any]) -> bool:
        """Tell whether the weights in ``args`` are the frozen ones, unchanged since."""
        return all(
            args[place] is tensor and _version(tensor) == version
            for place, tensor, version in self._frozen
        )

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        wiring = self.wiring
        values = {
            slot: args[place]
            for slot, place in zip(wiring.arguments, wiring.positions, strict=True)
        }
        for step, run in self._steps:
            given = [
                values[slot] if slot in values else self._size(slot, values) for slot in step.inputs
            ]
            for place, dtype in step.types:
                given[place] = given[place].to(dtype)
            values.update(zip(step.outputs, run(given), strict=True))
        computed = [self._value(item, values) for item in wiring.outputs]
        first, last = len(wiring.results), len(wiring.results) + len(wiring.mutations)
        arguments = [values[slot] for slot in wiring.arguments]
        results = self._make_results(computed, arguments, computed[last:])
        self._write_back(args, computed[first:last])
        return results

    def _make_results(
        self, computed: Sequence[Any], given: Sequence[Any], sizes: Sequence[Any]
    ) -> list[Any]:
        """Give results the layout and the memory that eager PyTorch gives them."""
        taken = {_memory(arg) for arg in given if isinstance(arg, torch.Tensor)} | self._kept
        owners: dict[int, torch.Tensor] = {}
        results = []
        for value, result in zip(computed, self.wiring.results, strict=False):
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
            for place, value in zip(self.wiring.mutations, values, strict=True)
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

    def _value(self, item: Any, values: dict[int, Any]) -> Any:
        if not isinstance(item, Slot):
            return item
        constant = self.wiring.constants.get(item.number)
        if constant is not None:
            return constant.value.to(constant.device)
        number = item.number
        return values[number] if number in values else self._size(number, values)

    def _size(self, slot: int, values: dict[int, Any]) -> Any:
        """Work out a size from the values of a call; it may be the item of a frozen buffer."""
        if slot not in values:
            if slot in self.wiring.constants:
                return self.wiring.constants[slot].value
            size = self.wiring.sizes[slot]
            args = map_slots(size.args, lambda number: self._size(number, values))
            values[slot] = size.target(*args)
        return values[slot]
