"""Calls outside of an engine's range, and calls that it cannot run, go to PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from singlecard.errors import RuntimeFailure, SinglecardError
from singlecard.faults import Faults, reason_of
from singlecard.lowering.lower import Profile
from singlecard.runtime.binding import Binding
from singlecard.runtime.runners import Runner

#: What runners do, for the words of a fault.
STAGE = "running a network"

#: Combinations of sizes that are known to be in range; more begin anew.
_KNOWN_SIZES = 1024


def range_refusal(shapes: Mapping[str, Sequence[int]], profiles: Mapping[str, Profile]) -> str:
    """Return why shapes are outside of an engine's range, or '' where they are inside."""
    for name, span in profiles.items():
        for axis, size in enumerate(shapes[name]):
            low, high = span.smallest[axis], span.largest[axis]
            if not low <= size <= high:
                return f"axis {axis} of {name} has {size}, the engine was built for {low} to {high}"
    return ""


def in_range(
    run: Runner,
    binding: Binding,
    instead: Runner | None,
    keep: Callable[[str], None] | None = None,
) -> Runner:
    """Return a runner that leaves to another what ``run`` cannot do, and says so once.

    Args:
        run: runs the network.
        binding: how it is called, with the ranges of its inputs.
        instead: runs the same ops in PyTorch; None raises `RuntimeFailure` instead.
        keep: given the reason of each failure, to be found in reports.
    """
    faults = Faults(STAGE, "this part", keep=keep)

    def call(values: Sequence[Any]) -> Sequence[Any]:
        try:
            return run(values)
        except Exception as error:
            if instead is not None:
                return faults.answer(error, functools.partial(instead, values))
            if isinstance(error, SinglecardError):
                raise
            raise RuntimeFailure(reason_of(error, STAGE)) from error

    if not binding.profiles:
        return call
    places = dict(zip(binding.input_names, binding.tensors, strict=False))
    ranged = [(name, place) for name, place in places.items() if name in binding.profiles]
    numbers = list(binding.extents.items())
    inside: set[tuple[Any, ...]] = set()

    def call_in_range(values: Sequence[Any]) -> Sequence[Any]:
        sizes: list[Any] = [values[place].shape for _, place in ranged]
        sizes += [(int(values[item.place]) - item.less,) for _, item in numbers]
        key = tuple(sizes)
        if key not in inside:
            names = [name for name, _ in (*ranged, *numbers)]
            refusal = range_refusal(dict(zip(names, key, strict=True)), binding.profiles)
            if refusal:
                if instead is None:
                    raise RuntimeFailure(refusal)
                results = instead(values)
                faults.tell(refusal, "range", is_fault=False)
                return results
            if len(inside) >= _KNOWN_SIZES:
                inside.clear()
            inside.add(key)
        return call(values)

    return call_in_range
