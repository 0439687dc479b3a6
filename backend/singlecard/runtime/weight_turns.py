"""One budget for the weights of all engines on a card: whose call was longest ago makes room."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from singlecard.errors import RuntimeFailure


class Member(Protocol):
    """An engine whose weights come and go."""

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take on the card."""

    def load_weights(self) -> None:
        """Put the weights on the card."""

    def unload_weights(self) -> None:
        """Take the weights off the card, behind all calls that were launched."""


@dataclass
class _Use:
    """A member whose weights are on the card, or coming there.

    Attributes:
        ready: whether they are there.
        launching: how many launch with it just now.
        last: when the last one began.
        stays: whether they stay for good.
    """

    ready: bool = False
    launching: int = 0
    last: int = 0
    stays: bool = False


class WeightTurns:
    """GPU memory for the weights of engines, which all have a budget.

    Where they were given different budgets, the smallest counts: whoever asked for it was promised
    the rest of the card.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._clock = itertools.count()
        self._budgets: weakref.WeakKeyDictionary[Member, int] = weakref.WeakKeyDictionary()
        #: Members with weights on the card. One that is gone has taken its weights along.
        self._loaded: weakref.WeakKeyDictionary[Member, _Use] = weakref.WeakKeyDictionary()

    def add(self, member: Member, budget: int) -> None:
        """Let a member take part, under a budget in bytes."""
        with self._changed:
            self._budgets[member] = budget

    @property
    def budget(self) -> int:
        """Bytes that all weights together may take."""
        return min(self._budgets.values())

    @contextmanager
    def taken(self, member: Member, stays: bool = False) -> Iterator[None]:
        """Have a member's weights on the card for the time of a launch.

        Args:
            member: one that was added.
            stays: from now on they stay there; nothing is loaded for it.

        Raises:
            RuntimeFailure: they are more than the budget, or than what others leave of it that
                stay; or TensorRT could not load them.
        """
        use = self._begin(member, stays)
        try:
            yield
        finally:
            with self._changed:
                use.launching -= 1
                self._changed.notify_all()

    def _begin(self, member: Member, stays: bool) -> _Use:
        """Count a launch with a member, whose weights are on the card when this returns."""
        with self._changed:
            use = self._loaded.get(member)
            while use is None or not use.ready:
                if use is None and stays:
                    raise RuntimeFailure(
                        "an engine must have run once before it is recorded in a CUDA graph, and "
                        "its weights be on the card: call it right before torch.cuda.graph"
                    )
                if use is None and self._make_room(member.weight_bytes):
                    return self._load(member)
                self._changed.wait()
                use = self._loaded.get(member)
            use.launching, use.last = use.launching + 1, next(self._clock)
            use.stays |= stays
            return use

    def _load(self, member: Member) -> _Use:
        """Load a member's weights while others, which are on the card, go on."""
        use = self._loaded[member] = _Use(launching=1, last=next(self._clock))
        self._changed.release()
        try:
            member.load_weights()
            use.ready = True
        finally:
            self._changed.acquire()
            if not use.ready:
                del self._loaded[member]
            self._changed.notify_all()
        return use

    def _make_room(self, size: int) -> bool:
        """Unload until so many bytes are free; return whether they are."""
        budget = self.budget
        staying = sum(member.weight_bytes for member, use in self._loaded.items() if use.stays)
        if staying + size > budget:
            others = f", of which {staying} belong to recorded CUDA graphs" if staying else ""
            raise RuntimeFailure(
                f"the weights of one engine take {size} bytes, and all together may take "
                f"{budget}{others}: give a larger memory_budget, or choose a lower precision"
            )
        used = sum(member.weight_bytes for member in self._loaded)
        for member, use in sorted(self._loaded.items(), key=lambda item: item[1].last):
            if used + size <= budget:
                break
            if not use.launching and not use.stays:
                member.unload_weights()
                del self._loaded[member]
                used -= member.weight_bytes
        return used + size <= budget


def weight_share(size: int, graph: int, budget: int | None) -> int | None:
    """Return what an engine may keep on the card of a budget; None: all its weights.

    The engines of one graph run in each of its calls: taking turns, each would come anew each time.
    So a graph that has more than the budget streams, and all its engines the same part.

    Args:
        size: bytes of the engine's weights.
        graph: of those of all engines of its graph.
        budget: of all weights on the card; None: no limit.
    """
    return None if budget is None or graph <= budget else budget * size // graph


class _Cards:
    """The turns of each card."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turns: dict[torch.device, WeightTurns] = {}

    def __call__(self, device: torch.device) -> WeightTurns:
        """Return the turns of a card."""
        with self._lock:
            return self._turns.setdefault(device, WeightTurns())


#: Those of this process: engines share a card's memory whoever compiled them.
turns_of = _Cards()
