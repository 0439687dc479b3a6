"""Scratch memory that all engines on one stream share.

What an engine keeps there is of no use when its call is done, and calls on one stream come one
after the other. So one block serves them all, as large as the largest need.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch


class Arena:
    """The scratch memory of one stream, which is freed with the last engine that uses it.

    Attributes:
        lock: held by whoever launches, so that nobody replaces the block meanwhile.
        generation: counts how often the block was replaced.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.generation = 0
        self._block: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes that the block has."""
        return 0 if self._block is None else self._block.numel()

    def reserve(self, size: int, allocate: Callable[[int], torch.Tensor]) -> tuple[int, int]:
        """Return address and size of the block, which holds at least so many bytes.

        A block that is too small goes before the larger one comes. Launched work may still use it:
        memory is reused in the order of the stream it is from.

        Raises:
            torch.OutOfMemoryError: there is not so much memory.
        """
        if self._block is None or self._block.numel() < size:
            self.generation += 1
            self._block = None
            self._block = allocate(size)
        return self._block.data_ptr(), self._block.numel()


class Arenas:
    """The arenas that some engine uses, by device and stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arenas: weakref.WeakValueDictionary[tuple[torch.device, int], Arena]
        self._arenas = weakref.WeakValueDictionary()

    def __call__(self, device: torch.device, stream: int) -> Arena:
        """Return the arena of a stream."""
        with self._lock:
            arena = self._arenas.get((device, stream))
            if arena is None:
                arena = self._arenas[device, stream] = Arena()
            return arena

    def __len__(self) -> int:
        return len(self._arenas)


#: Those of this process: engines share scratch memory whoever compiled them.
arena_of = Arenas()
