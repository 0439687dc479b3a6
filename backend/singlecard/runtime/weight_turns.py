"""Engines whose weights do not fit on the card together take turns there."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from singlecard.errors import RuntimeFailure


class Member(Protocol):
    """An engine that was loaded without its weights."""

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take on the card."""

    def load_weights(self) -> None:
        """Put the weights on the card."""

    def unload_weights(self) -> None:
        """Take the weights off the card, behind all calls that were launched."""


@dataclass
class _Use:
    """How many launch with a member just now, and when the last one began."""

    launching: int = 0
    last: int = 0


class WeightTurns:
    """A budget of GPU memory for weights: whose call was longest ago makes room."""

    def __init__(self, budget: int) -> None:
        """Set the budget, in bytes."""
        self.budget = budget
        self._changed = threading.Condition()
        self._clock = itertools.count()
        #: Members with weights on the card. One that is gone has taken its weights along.
        self._loaded: weakref.WeakKeyDictionary[Member, _Use] = weakref.WeakKeyDictionary()

    @contextmanager
    def taken(self, member: Member) -> Iterator[None]:
        """Have a member's weights on the card for the time of a launch.

        Raises:
            RuntimeFailure: they alone are more than the budget, or TensorRT could not load them.
        """
        size = member.weight_bytes
        if size > self.budget:
            raise RuntimeFailure(
                f"the weights of one engine take {size} bytes, and all together may take "
                f"{self.budget}: give a larger memory_budget, or choose a lower precision"
            )
        with self._changed:
            while member not in self._loaded and not self._make_room(size):
                self._changed.wait()
            if member not in self._loaded:
                member.load_weights()
            use = self._loaded.setdefault(member, _Use())
            use.launching, use.last = use.launching + 1, next(self._clock)
        try:
            yield
        finally:
            with self._changed:
                use.launching -= 1
                self._changed.notify_all()

    def _make_room(self, size: int) -> bool:
        """Unload until so many bytes are free; return whether they are."""
        used = sum(member.weight_bytes for member in self._loaded)
        for member, use in sorted(self._loaded.items(), key=lambda item: item[1].last):
            if used + size <= self.budget:
                break
            if not use.launching:
                member.unload_weights()
                del self._loaded[member]
                used -= member.weight_bytes
        return used + size <= self.budget
