"""What a compiled graph is without its graph: wiring, a binding, and the digest of its engine.

A recipe is kept beside the engines under the digest of all that it follows from, so that the next
process goes from Dynamo's graph to its engine at once: nothing is captured, folded or lowered, and
weights are hashed as they are. It names the engine by its content, and holds no code.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import torch

from singlecard.capture.layouts import Layout
from singlecard.capture.plain import NotPlain, from_plain, function_name, function_named, to_plain
from singlecard.capture.results import Result, View
from singlecard.lowering.lower import Extent, Profile
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.options import Options
from singlecard.runtime.binding import Binding
from singlecard.runtime.wiring import Size, Slot, Step, Wiring

#: Options that say where engines are kept, when they are built and how they run, not what they are.
_ELSEWHERE = (
    "build",
    "cache_dir",
    "cache_limit",
    "calibration",
    "cuda_graphs",
    "execution",
    "fallback",
    "memory_budget",
    "offload_weights",
    "remote_cache",
    "signing_key",
    "specialization",
)


@dataclass(frozen=True)
class Recipe:
    """A graph that one engine computes wholly.

    Attributes:
        wiring: what is done around it; it has one step and no constants.
        digest: of the engine.
        binding: how the engine is called.
        passed: results that are arguments, each with that argument's place.
    """

    wiring: Wiring
    digest: str
    binding: Binding
    passed: tuple[tuple[int, int], ...] = ()


def recipe_digest(fingerprint: str, options: Options, spans: Mapping[Any, Any]) -> str:
    """Return the digest of all that a recipe follows from."""
    table = options.calibration
    asked = {name: value for name, value in sorted(vars(options).items()) if name not in _ELSEWHERE}
    parts = (
        fingerprint,
        repr(asked),
        repr(options.memory_budget is not None),  # whether weights can be streamed
        "" if table is None else repr(table.to_dict()),
        repr(sorted((str(symbol), span) for symbol, span in spans.items())),
        flavour_name(),
        flavour_version(),
        _own_digest(),
    )
    return blake3.blake3(repr(parts).encode()).hexdigest()


@functools.cache
def _own_digest() -> str:
    """Return the digest of singlecard's own sources: rewrites change between its versions."""
    hasher = blake3.blake3()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        hasher.update(f"{path.relative_to(root)}\n".encode())
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


def recipe_to_plain(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON has it.

    Raises:
        NotPlain: it holds what files cannot.
    """
    return {
        "wiring": wiring_to_plain(recipe.wiring),
        "digest": recipe.digest,
        "binding": binding_to_plain(recipe.binding),
        "passed": [list(pair) for pair in recipe.passed],
    }


def recipe_from_plain(held: Any) -> Recipe:
    """Return the recipe of plain values.

    Raises:
        NotPlain: they are of another making.
    """
    try:
        wiring, binding = wiring_from_plain(held["wiring"]), binding_from_plain(held["binding"])
        passed = tuple((int(place), int(argument)) for place, argument in held["passed"])
        return Recipe(wiring, str(held["digest"]), binding, passed)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise NotPlain(f"this is no recipe of a compiled graph: {error!r}") from error


def wiring_to_plain(wiring: Wiring) -> dict[str, Any]:
    """Return wiring as JSON has it, without its constants.

    Raises:
        NotPlain: it holds what files cannot.
    """
    return {
        "arguments": list(wiring.arguments),
        "positions": list(wiring.positions),
        "frozen": list(wiring.frozen),
        "steps": [
            {
                "lowered": step.lowered,
                "inputs": list(step.inputs),
                "outputs": list(step.outputs),
                "types": [[place, to_plain(dtype)] for place, dtype in step.types],
            }
            for step in wiring.steps
        ],
        "outputs": [_item_to_plain(item) for item in wiring.outputs],
        "results": [_result_to_plain(item) for item in wiring.results],
        "mutations": list(wiring.mutations),
        "sizes": {
            str(slot): [function_name(size.target), _args_to_plain(size.args)]
            for slot, size in wiring.sizes.items()
        },
    }


def wiring_from_plain(held: Any) -> Wiring:
    return Wiring(
        tuple(map(int, held["arguments"])),
        tuple(map(int, held["positions"])),
        tuple(map(int, held["frozen"])),
        tuple(
            Step(
                bool(step["lowered"]),
                tuple(map(int, step["inputs"])),
                tuple(map(int, step["outputs"])),
                tuple((int(place), from_plain(dtype)) for place, dtype in step["types"]),
            )
            for step in held["steps"]
        ),
        tuple(_item_from_plain(item) for item in held["outputs"]),
        tuple(_result_from_plain(item) for item in held["results"]),
        tuple(map(int, held["mutations"])),
        {},
        {
            int(slot): Size(function_named(name), _args_from_plain(args))
            for slot, (name, args) in held["sizes"].items()
        },
    )


def binding_to_plain(binding: Binding) -> dict[str, Any]:
    return {
        "tensors": list(binding.tensors),
        "extents": {name: [item.place, item.less] for name, item in binding.extents.items()},
        "operands": {
            name: [place, to_plain(dtype)] for name, (place, dtype) in binding.operands.items()
        },
        "outputs": binding.outputs,
        "in_place": [list(pair) for pair in binding.in_place.items()],
        "profiles": {
            name: [list(span.smallest), list(span.usual), list(span.largest)]
            for name, span in binding.profiles.items()
        },
        "device": str(binding.device),
        "on_host": list(binding.on_host),
    }


def binding_from_plain(held: Any) -> Binding:
    return Binding(
        tuple(map(int, held["tensors"])),
        {str(name): Extent(int(at), int(less)) for name, (at, less) in held["extents"].items()},
        int(held["outputs"]),
        {int(output): int(place) for output, place in held["in_place"]},
        {
            str(name): Profile(*(tuple(map(int, shape)) for shape in shapes))
            for name, shapes in held["profiles"].items()
        },
        torch.device(held["device"]),
        {
            str(name): (int(place), from_plain(dtype))
            for name, (place, dtype) in held["operands"].items()
        },
        tuple(map(int, held["on_host"])),
    )


def _result_to_plain(result: Result) -> dict[str, Any]:
    return {
        "owner": result.owner,
        "layout": None if result.layout is None else _layout_to_plain(result.layout),
        "views": [[function_name(view.target), to_plain(view.rest)] for view in result.views],
        "source": result.source,
    }


def _result_from_plain(held: Any) -> Result:
    layout, views = held["layout"], held["views"]
    return Result(
        held["owner"],
        None if layout is None else _layout_from_plain(layout),
        tuple(View(function_named(name), from_plain(rest)) for name, rest in views),
        held["source"],
    )


def _layout_to_plain(layout: Layout) -> dict[str, Any]:
    return {
        "order": list(layout.order),
        "broadcast": list(layout.broadcast),
        "strides": None if layout.strides is None else list(layout.strides),
    }


def _layout_from_plain(held: Any) -> Layout:
    strides = held["strides"]
    return Layout(
        tuple(map(int, held["order"])),
        tuple(map(int, held["broadcast"])),
        None if strides is None else tuple(map(int, strides)),
    )


def _item_to_plain(item: Any) -> Any:
    return {"slot": item.number} if isinstance(item, Slot) else to_plain(item)


def _item_from_plain(held: Any) -> Any:
    is_slot = isinstance(held, dict) and "slot" in held
    return Slot(int(held["slot"])) if is_slot else from_plain(held)


def _args_to_plain(args: Sequence[Any]) -> list[Any]:
    return [_item_to_plain(item) for item in args]


def _args_from_plain(held: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_item_from_plain(item) for item in held)
