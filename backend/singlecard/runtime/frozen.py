"""The weights that were compiled in, and how each call finds out whether they still are."""

from __future__ import annotations

import operator
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from singlecard.capture.program import Program

_address = torch.Tensor.data_ptr
_version = operator.attrgetter("_version")


class Frozen:
    """The weights that are compiled in, and what changes when one is written to or moved.

    It is made before they are compiled: one that is written to meanwhile has changed. A model has
    hundreds, and each call looks at all of them: so the loops here are C's.
    """

    def __init__(self, places: Sequence[int], weights: Sequence[torch.Tensor]) -> None:
        self.places, self.get, self.weights = tuple(places), getter(places), tuple(weights)
        # Tensors made in inference mode do not count changes.
        self._counted = [weight for weight in weights if not weight.is_inference()]
        self._addresses: list[int | None] = list(map(_address, self.weights))
        self._versions = list(map(_version, self._counted))
        #: Memory of these weights that was freed: what lies at its address now is something else,
        #: such as the next value but one of the same weight.
        self._freed: list[Any] = []
        self._memory = [self._watched(weight) for weight in self.weights]
        with _lock:
            _alive.add(self)

    @classmethod
    def of(cls, program: Program) -> Frozen:
        return cls(list(program.frozen), list(program.frozen.values()))

    def are_in(self, args: Sequence[Any]) -> bool:
        """Tell whether these weights are those in ``args``, whatever was written to them."""
        return all(map(operator.is_, self.get(args), self.weights))

    def are_unchanged(self) -> bool:
        """Tell whether none was written to, or given other memory."""
        if self._seem_unchanged():
            return True
        with _lock:  # another thread may just be moving them
            return self._seem_unchanged()

    def are_lost(self) -> bool:
        """Tell whether no weights will be these again: one was written to, or its memory freed."""
        return bool(self._freed) or list(map(_version, self._counted)) != self._versions

    def _seem_unchanged(self) -> bool:
        return (
            list(map(_address, self.weights)) == self._addresses
            and list(map(_version, self._counted)) == self._versions
            and not self._freed
        )

    def are_current(self, args: Sequence[Any]) -> bool:
        return self.are_in(args) and self.are_unchanged()

    def _watched(self, weight: torch.Tensor) -> Any:
        return weakref.ref(weight.untyped_storage(), self._freed.append)

    def _follow(self, moves: Mapping[int, torch.Tensor]) -> None:
        for place, weight in enumerate(self.weights):
            there = moves.get(id(weight))
            if there is not None:
                same = self._addresses[place] == _address(weight)
                # What had changed before stays so, though it may come to lie where it once lay.
                self._addresses[place] = _address(there) if same else None
                self._memory[place] = self._watched(there)


_lock = threading.Lock()
_alive: weakref.WeakSet[Frozen] = weakref.WeakSet()


@contextmanager
def following(moves: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Iterator[None]:
    """Take note of weights that are moved within, each with a tensor that lies where it will lie.

    Whoever compiled them need not compile them again.
    """
    known = {id(weight): there for weight, there in moves}
    with _lock:
        for frozen in _alive:
            frozen._follow(known)
        yield


def getter(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return what picks the items at these places."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    if not places:
        return lambda args: ()
    (only,) = places
    return lambda args: (args[only],)
