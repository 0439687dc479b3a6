"""How an architecture gets on the list."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Architecture:
    """One model of the list.

    Attributes:
        name: of the declaration; a decode step has the suffix ``_decode``.
        family: one of ``FAMILIES`` in `tests/models/architectures.py`.
        make: gives the model and its arguments, the same bit for bit every time.
        left_out: at most this many of its ops are left to PyTorch.
        engines: at most this many engines.
        limit: of the relative L2 error in FP32, over all answers.
        scalars: whether ``torch._dynamo.config.capture_scalar_outputs`` is set, as Dynamo's hint
            on a graph break says; otherwise every ``item()`` divides the model.
    """

    name: str
    family: str
    make: Callable[[], Case]
    left_out: int = 0
    engines: int = 1
    limit: float = 5e-6
    scalars: bool = False

    def settings(self) -> AbstractContextManager[None]:
        """Return a context in which Dynamo is set as the model asks."""
        patch: AbstractContextManager[None] = torch._dynamo.config.patch(
            capture_scalar_outputs=self.scalars
        )
        return patch

    @property
    def model(self) -> str:
        """The architecture itself: a prompt and a step of one decoder count once."""
        return self.name.removesuffix("_decode")


LISTED: dict[str, Architecture] = {}


def architecture(
    family: str, **expected: Any
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Put a declaration on the list, under the name of its function."""

    def keep(declare: Callable[[], Case]) -> Callable[[], Case]:
        name = declare.__name__
        assert name not in LISTED, f"two architectures have the name {name}"
        make = _seeded(declare)
        LISTED[name] = Architecture(name, family, make, **expected)
        return declare

    return keep


def _seeded(declare: Callable[[], Case]) -> Callable[[], Case]:
    def make() -> Case:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module, args, kwargs = declare()
            return module.eval(), args, kwargs

    return make
