"""A compiled Program: segments in order, values between them, and inputs written back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from singlecard.capture.layouts import Layout, laid_out
from singlecard.capture.program import Program
from singlecard.capture.results import view_again
from singlecard.errors import RuntimeFailure
from singlecard.faults import HalfWritten
from singlecard.partition import Segment
from singlecard.runtime.frozen import Frozen, getter
from singlecard.runtime.runners import Runner
from singlecard.runtime.wiring import Slot, Wiring, map_slots, wiring_of

_storage, _address = torch.Tensor.untyped_storage, torch.UntypedStorage.data_ptr


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0


def _memories(values: Sequence[Any]) -> list[int]:
    """Return where the memory of each tensor begins; what is no tensor is left out."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    try:
        return list(map(_address, map(_storage, tensors)))
    except NotImplementedError:  # a sparse tensor has no memory of that kind
        return list(map(_memory, tensors))


class Executable:
    """Calls with AOTAutograd's flat arguments; returns the flat results."""

    def __init__(self, wiring: Wiring, runners: Sequence[Runner], frozen: Frozen) -> None:
        """Prepare to run.

        Args:
            wiring: how segments hang together.
            runners: for each step, what runs it.
            frozen: the weights that were compiled in.
        """
        self.wiring = wiring
        self._arguments = getter(wiring.positions)
        given = set(wiring.arguments)
        self._steps = []
        for step, run in zip(wiring.steps, runners, strict=True):
            plain = given.issuperset(step.inputs)
            pick: Callable[[Any], Sequence[Any]] | None = getter(step.inputs) if plain else None
            self._steps.append((step, run, pick))
            given.update(step.outputs)
        self.frozen = frozen
        self._kept = {_memory(item.value) for item in wiring.constants.values()}
        self._first, self._last = (
            len(wiring.results),
            len(wiring.results) + len(wiring.mutations),
        )
        self._leaves_no_trace = not wiring.mutations and all(step.lowered for step in wiring.steps)
        #: Picks what the graph computes, where each is simply in a slot when all steps are done.
        self._computed = self._plain_outputs(given)
        #: Layouts of results, where each is a tensor with memory of its own.
        self._layouts = self._plain_layouts()

    def _plain_outputs(self, given: set[int]) -> Callable[[Any], Sequence[Any]] | None:
        outputs = self.wiring.outputs
        numbers = [item.number for item in outputs if isinstance(item, Slot)]
        simple = given.issuperset(numbers) and not self.wiring.constants.keys() & set(numbers)
        return getter(numbers) if simple and len(numbers) == len(outputs) else None

    def _plain_layouts(self) -> list[Layout | None] | None:
        results = self.wiring.results
        owners = {item.owner for item in results} - {None}
        simple = len(owners) == len(results) and not any(item.views for item in results)
        return [item.layout for item in results] if simple else None

    @classmethod
    def of(
        cls,
        program: Program,
        steps: Sequence[tuple[Segment, Runner]],
        frozen: Frozen | None = None,
    ) -> Executable:
        """Return what runs a Program that was cut into segments.

        Args:
            program: what was captured.
            steps: its segments, and what runs each.
            frozen: the weights as they were before work on them began. None: as they are now.
        """
        wiring = wiring_of(program, [segment for segment, _ in steps])
        return cls(wiring, [run for _, run in steps], frozen or Frozen.of(program))

    def attempt(self, args: Sequence[Any]) -> list[Any] | None:
        """Return the results; None if the weights in ``args`` are not the frozen ones, unchanged.

        Whether hundreds of weights are unchanged is looked at while the card works, where nothing
        but the results would have to be forgotten.
        """
        if not self.frozen.are_in(args):
            return None
        if not self._leaves_no_trace:
            return self(args) if self.frozen.are_unchanged(args) else None
        results = self(args)
        return results if self.frozen.are_unchanged(args) else None

    def is_lost(self) -> bool:
        """Tell whether no call can have the weights any more that it was compiled for."""
        return self.frozen.are_lost()

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        wiring = self.wiring
        arguments = self._arguments(args)
        values: dict[int, Any] = dict(zip(wiring.arguments, arguments, strict=True))
        for step, run, pick in self._steps:
            given: Sequence[Any]
            if pick is not None:
                given = pick(values)
            else:
                given = [
                    values[slot] if slot in values else self._size(slot, values)
                    for slot in step.inputs
                ]
            if step.types:
                given = list(given)
                for place, dtype in step.types:
                    given[place] = given[place].to(dtype)
            values.update(zip(step.outputs, run(given), strict=True))
        computed: Sequence[Any]
        if self._computed is not None:
            computed = self._computed(values)
        else:
            computed = [self._value(item, values) for item in wiring.outputs]
        first, last = self._first, self._last
        results = self._make_results(computed, arguments, computed[last:])
        if first != last:
            self._write_back(args, computed[first:last])
        return results

    def _make_results(
        self, computed: Sequence[Any], given: Sequence[Any], sizes: Sequence[Any]
    ) -> list[Any]:
        """Give results the layout and the memory that eager PyTorch gives them."""
        if self._layouts is not None:
            plain = [
                value.contiguous() if layout is None else laid_out(value, layout)
                for value, layout in zip(computed, self._layouts, strict=False)
            ]
            memories = [*self._kept, *_memories((*given, *plain))]
            if len(set(memories)) == len(memories):  # nothing shares memory
                return plain
        taken: set[int] | None = None
        owners: dict[int, torch.Tensor] = {}
        results = []
        for value, result in zip(computed, self.wiring.results, strict=False):
            if result.source is not None:
                results.append(view_again(given[result.source], result.views, sizes))
                continue
            if result.owner is None:
                results.append(value)
                continue
            owner = owners.get(result.owner)
            if owner is None:
                owner = laid_out(value, result.layout)
                memory = _memory(owner)
                if taken is None:
                    taken = self._kept.union(_memories(given))
                if memory in taken and owner.numel():
                    owner = owner.clone()  # rewrites made one of what are two in eager PyTorch
                    memory = _memory(owner)
                taken.add(memory)
                owners[result.owner] = owner
            results.append(view_again(owner, result.views, sizes) if result.views else owner)
        return results

    def _write_back(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        """Copy the new values of mutated inputs, none of which may be overwritten before.

        An input that an engine wrote to in place is its own new value already. What can fail is
        done before anything is written: PyTorch answers then, from inputs that are as they were.

        Raises:
            HalfWritten: PyTorch copied one value, and failed to copy another.
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
        changes = [(target, value.to(target.device)) for target, value in changes]
        for target, value in changes:
            if target.shape != value.shape:
                raise RuntimeFailure(
                    f"an input of shape {list(target.shape)} would be overwritten with a value of "
                    f"shape {list(value.shape)}: please report this"
                )
        for place, (target, value) in enumerate(changes):
            try:
                target.copy_(value)
            except Exception as error:
                if not place:
                    raise
                raise HalfWritten(
                    f"{place} of {len(changes)} tensors that a call changes were written, and then "
                    f"PyTorch failed to write the next one ({error}): restore their values before "
                    "the model is called again"
                ) from error

    def _value(self, item: Any, values: dict[int, Any]) -> Any:
        if not isinstance(item, Slot):
            return item
        number = item.number
        constant = self.wiring.constants.get(number)
        if constant is not None:
            return constant.value.to(constant.device)
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
