"""What the tests of CUDA graphs share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from singlecard.network import recording
from singlecard.network.runtime_settings import RuntimeSettings
from tests.runtime.engines import F32, OUT, X, Y
from tests.runtime.stand_in import Machine, Spec

RECORDED = RuntimeSettings(cuda_graphs=True)

#: Inputs of a test, kept so that no two are at one address unless they are the same.
inputs: list[torch.Tensor] = []


@contextlib.contextmanager
def full_machine(make_machine: Callable[..., Machine]) -> Iterator[Machine]:
    """Put a machine with full TensorRT in the place of this one's; check it at the end."""
    recording._say.cache_clear()
    made = make_machine(full=True)
    yield made
    inputs.clear()
    made.check()


def weighing(**changes: Any) -> Spec:
    """``x * weight``: one input that comes from anywhere, and one that stays."""
    spec: dict[str, Any] = {
        "inputs": {X: (F32, (-1, 3)), Y: (F32, (3,))},
        "outputs": {OUT: F32},
        "shapes": lambda shapes: [shapes[0]],
        "compute": lambda values: [values[0] * values[1]],
    }
    return Spec(**(spec | changes))


def fresh(machine: Machine, *shape: int) -> torch.Tensor:
    """Return an input at an address of its own."""
    inputs.append(machine.tensor(torch.randn(shape)))
    return inputs[-1]


def held(machine: Machine) -> int:
    """Return the memory that is not inputs."""
    return machine.memory.used - sum(value.nbytes for value in inputs)


def is_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected)
