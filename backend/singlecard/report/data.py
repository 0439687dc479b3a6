"""Calibration data on the command line: from ``path.py:function`` to calls of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from singlecard.errors import ModelError
from singlecard.report.model import blaming, call_named

_RETURNS = "an iterable of calls, such as a list or a DataLoader"


@dataclass(frozen=True)
class Data:
    """Calls of a model, which the user's own code makes while they are read.

    Attributes:
        name: as it was given.
        calls: what the function returned.
    """

    name: str
    calls: Iterable[Any]

    def __iter__(self) -> Iterator[Any]:
        with blaming(f"the data of {self.name} raised"):
            yield from self.calls

    def __len__(self) -> int:
        return len(self.calls)  # type: ignore[arg-type]  # a TypeError where there is no length


def load_data(spec: str) -> Data:
    """Return the calls that a function makes.

    Args:
        spec: ``path.py:function`` or ``package.module:function``.

    Raises:
        ModelError: it leads nowhere, or to something that cannot be iterated over.
    """
    made = call_named(spec, "--data", _RETURNS)
    if not isinstance(made, Iterable):
        raise ModelError(f"{spec} returned {type(made).__name__}: it must return {_RETURNS}")
    return Data(spec, made)
