"""Calls outside of an engine's range, and calls that it cannot run, go to PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from singlecard.errors import RuntimeFailure
from singlecard.lowering.lower import Profile
from singlecard.observe.counters import count_one
from singlecard.observe.topics import topic
from singlecard.runtime.binding import Binding
from singlecard.runtime.runners import Runner

log = topic("runtime")

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


def in_range(run: Runner, binding: Binding, instead: Runner | None) -> Runner:
    """Return a runner that leaves to another what ``run`` cannot do, and says so once.

    Args:
        run: runs the network.
        binding: how it is called, with the ranges of its inputs.
        instead: runs the same ops in PyTorch; None raises instead.
    """
    told: set[str] = set()

    def leave(reason: str, kind: str, values: Sequence[Any]) -> Sequence[Any]:
        if instead is None:
            raise RuntimeFailure(reason)
        if kind not in told:
            told.add(kind)
            log.warning("%s: this part runs in PyTorch", reason)
        results = instead(values)
        count_one("fallback_calls")
        return results

    def call(values: Sequence[Any]) -> Sequence[Any]:
        try:
            return run(values)
        except RuntimeFailure as error:
            return leave(str(error), str(error), values)

    if not binding.profiles:
        return call
    places = dict(zip(binding.input_names, binding.tensors, strict=False))
    ranged = [(name, place) for name, place in places.items() if name in binding.profiles]
    numbers = [(name, place) for name, place in binding.extents.items() if name in binding.profiles]
    inside: set[tuple[Any, ...]] = set()

    def call_in_range(values: Sequence[Any]) -> Sequence[Any]:
        sizes: list[Any] = [values[place].shape for _, place in ranged]
        sizes += [(int(values[place]),) for _, place in numbers]
        key = tuple(sizes)
        if key not in inside:
            names = [name for name, _ in (*ranged, *numbers)]
            refusal = range_refusal(dict(zip(names, key, strict=True)), binding.profiles)
            if refusal:
                return leave(refusal, "range", values)
            if len(inside) >= _KNOWN_SIZES:
                inside.clear()
            inside.add(key)
        return call(values)

    return call_in_range
