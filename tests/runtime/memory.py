"""Host memory in a card's place: streams, allocations that know their stream, and events."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from singlecard.network.card import Card

ALIGNMENT = 256


@dataclass
class Block:
    """One allocation.

    Attributes:
        address, size: where it is.
        stream: the one whose order its memory is reused in.
        used: streams whose launched work reads or writes it.
        kept: streams that it was recorded for.
    """

    address: int
    size: int
    stream: int
    used: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)


class Memory:
    """All allocations that are alive."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.blocks: dict[int, Block] = {}
        self.violations: list[str] = []
        self.allocations = 0
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        return sum(block.size for block in self.blocks.values())

    def allocate(self, size: int, stream: int) -> torch.Tensor:
        """Return bytes, aligned; with none, a tensor without an address, as PyTorch has it."""
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        with self._lock:
            if self.used + size > self.capacity:
                raise torch.OutOfMemoryError(f"tried to allocate {size} bytes")
            whole = np.full(size + ALIGNMENT, 0xA5, dtype=np.uint8)
            start = -whole.ctypes.data % ALIGNMENT
            part = whole[start : start + size]
            block = Block(part.ctypes.data, size, stream)
            self.blocks[block.address] = block
            self.allocations += 1
        weakref.finalize(part, self._free, block)
        return torch.from_numpy(part)

    def _free(self, block: Block) -> None:
        with self._lock:
            del self.blocks[block.address]
            for stream in block.used - block.kept - {block.stream}:
                self.violations.append(
                    f"memory of stream {block.stream} is freed while stream {stream} may use it"
                )

    def block_at(self, address: int) -> Block | None:
        """Return the allocation that an address lies in."""
        with self._lock:
            for block in self.blocks.values():
                if block.address <= address < block.address + block.size:
                    return block
        return None


class Event:
    """An event behind a stream's work of now."""

    def __init__(self, finished: Any) -> None:
        self._finished = finished

    def synchronize(self) -> None:
        self._finished()


class HostCard(Card):
    """Stands in for `Card`: the device is the CPU, and streams are numbers.

    Whatever would reach `torch.cuda` fails, since the PyTorch of these tests has no CUDA.
    """

    def __init__(self, memory: Memory) -> None:
        self.device = torch.device("cpu")
        self.memory = memory
        self.cached = False
        self.finished: list[Any] = []
        self._current = threading.local()
        self.stream = self._stream
        self.empty = self._empty

    def _stream(self) -> int:
        return int(getattr(self._current, "stream", 0))

    def _empty(
        self, shape: Sequence[int], strides: Sequence[int], *, dtype: torch.dtype
    ) -> torch.Tensor:
        size = math.prod(shape) * dtype.itemsize
        return self.memory.allocate(size, self._stream()).view(dtype).as_strided(shape, strides)

    @contextlib.contextmanager
    def on(self, stream: int, *, capturing: bool = False) -> Iterator[None]:
        """Make a stream the current one of this thread."""
        before = self._stream(), self.is_capturing()
        self._current.stream, self._current.capturing = stream, capturing
        try:
            yield
        finally:
            self._current.stream, self._current.capturing = before

    def is_current(self) -> bool:
        return bool(getattr(self._current, "here", True))

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Have this thread's CUDA calls go to another device."""
        self._current.here = False
        try:
            yield
        finally:
            self._current.here = True

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        before = self.is_current()
        self._current.here = True
        try:
            yield
        finally:
            self._current.here = before

    def is_capturing(self) -> bool:
        return bool(getattr(self._current, "capturing", False))

    def keep(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            block = self.memory.block_at(tensor.data_ptr())
            if block is not None:
                block.kept.add(self._stream())

    def mark(self) -> Any:
        stream = self._stream()
        return Event(lambda: [finish(stream) for finish in self.finished])

    def release_cached(self) -> bool:
        cached, self.cached = self.cached, False
        return cached

    @property
    def name(self) -> str:
        return "NVIDIA Stand-In 4090"

    @property
    def driver(self) -> int:
        return 13
