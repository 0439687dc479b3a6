"""Small engines for the stand-in, and how they are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.lower import input_name, output_name
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime.binding import Binding
from singlecard.runtime.engine import EngineRunner
from tests.runtime.stand_in import Machine, Spec

X, Y, OUT = input_name(0), input_name(1), output_name(0)
F32 = torch.float32


def doubling(shape: Sequence[int] = (2, 3), **changes: Any) -> Spec:
    """``2 * x``."""
    spec: dict[str, Any] = {
        "inputs": {X: (F32, tuple(shape))},
        "outputs": {OUT: F32},
        "shapes": lambda shapes: [shapes[0]],
        "compute": lambda values: [values[0] * 2],
    }
    return Spec(**(spec | changes))


def caching(**changes: Any) -> Spec:
    """Add ``x`` to a cache in place, and return its sum too."""
    spec: dict[str, Any] = {
        "inputs": {X: (F32, (2, 4)), Y: (F32, (2, 4))},
        "outputs": {OUT: F32, output_name(1): F32},
        "shapes": lambda shapes: [shapes[1], (2,)],
        "compute": lambda values: [values[0] + values[1], (values[0] + values[1]).sum(1)],
        "aliases": {OUT: Y},
    }
    return Spec(**(spec | changes))


def positives(**changes: Any) -> Spec:
    """The positive items of ``x``: how many there are only the run tells."""
    spec: dict[str, Any] = {
        "inputs": {X: (F32, (8,))},
        "outputs": {OUT: F32, output_name(1): F32},
        "shapes": lambda shapes: [(-1,), shapes[0]],
        "compute": lambda values: [values[0][values[0] > 0], values[0] + 1],
    }
    return Spec(**(spec | changes))


def binding(inputs: int = 1, outputs: int = 1, in_place: dict[int, int] | None = None) -> Binding:
    return Binding(tuple(range(inputs)), {}, outputs, in_place or {}, {}, torch.device("cpu"))


def runner(
    machine: Machine, spec: Spec, settings: RuntimeSettings | None = None, **options: Any
) -> EngineRunner:
    """Return what runs a new engine."""
    places = list(spec.inputs)
    at = {
        index: places.index(spec.aliases[name])
        for index, name in enumerate(spec.outputs)
        if name in spec.aliases
    }
    bound = binding(len(spec.inputs), len(spec.outputs), at)
    return EngineRunner(machine.plan(spec), bound, settings=settings, **options)
