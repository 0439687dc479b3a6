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

    They are known by identity and not kept alive: a model that is gone frees its weights. It is
    made before they are compiled: one that is written to meanwhile has changed. A model has
    hundreds, and each call looks at all of them: so the loops here are C's.
    """

    def __init__(self, places: Sequence[int], weights: Sequence[torch.Tensor]) -> None:
        self.places, self.get = tuple(places), getter(places)
        #: Weights that are gone: what has the identity of one now is something else.
        self._gone: list[Any] = []
        self._references = [weakref.ref(weight, self._gone.append) for weight in weights]
        self._identities = list(map(id, weights))
        # Tensors made in inference mode do not count changes.
        counted = [place for place, weight in enumerate(weights) if not weight.is_inference()]
        self._counted = getter(counted)
        self._addresses: list[int | None] = list(map(_address, weights))
        self._versions = list(map(_version, self._counted(weights)))
        #: Memory of these weights that was freed: what lies at its address now is something else,
        #: such as the next value but one of the same weight.
        self._freed: list[Any] = []
        self._memory = list(map(self._watched, weights))
        with _lock:
            _alive.add(self)

    @classmethod
    def of(cls, program: Program) -> Frozen:
        return cls(list(program.frozen), list(program.frozen.values()))

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """The weights; none where one of them is gone."""
        found = [reference() for reference in self._references]
        return () if self._gone else tuple(item for item in found if item is not None)

    def are_in(self, args: Sequence[Any]) -> bool:
        """Tell whether these weights are those in ``args``, whatever was written to them."""
        return list(map(id, self.get(args))) == self._identities and not self._gone

    def are_among(self, other: Frozen) -> bool:
        """Tell whether these weights are others, at the same places."""
        known = dict(zip(other.places, other._identities, strict=True))
        mine = zip(self.places, self._identities, strict=True)
        return not self._gone and all(known.get(place) == at for place, at in mine)

    def are_unchanged(self, args: Sequence[Any] | None = None) -> bool:
        """Tell whether none was written to, or given other memory.

        Args:
            args: has these weights at their places, which saves looking for them.
        """
        weights = self.weights if args is None else self.get(args)
        if self._seem_unchanged(weights):
            return True
        with _lock:  # another thread may just be moving them
            return self._seem_unchanged(weights)

    def are_gone(self) -> bool:
        """Tell whether one of the weights is no more."""
        return bool(self._gone)

    def are_lost(self) -> bool:
        """Tell whether no weights will be these again: one was written to, or its memory freed."""
        weights = self.weights
        if self._gone or self._freed:
            return True
        return list(map(_version, self._counted(weights))) != self._versions

    def _seem_unchanged(self, weights: Sequence[torch.Tensor]) -> bool:
        return (
            list(map(_address, weights)) == self._addresses
            and list(map(_version, self._counted(weights))) == self._versions
            and not self._freed
            and not self._gone
        )

    def are_current(self, args: Sequence[Any]) -> bool:
        return self.are_in(args) and self.are_unchanged(args)

    def _watched(self, weight: torch.Tensor) -> Any:
        return weakref.ref(weight.untyped_storage(), self._freed.append)

    def _follow(self, moves: Mapping[int, torch.Tensor]) -> None:
        for place, identity in enumerate(self._identities):
            there = moves.get(identity)
            weight = None if there is None else self._references[place]()
            if there is not None and weight is not None:
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
