"""Host memory in a card's place: streams, allocations that know their stream, and events."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
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


class CaptureError(RuntimeError):
    """CUDA refuses a call while it records, as it does by a `RuntimeError` of PyTorch's."""


class Event:
    """An event behind a stream's work of now."""

    def __init__(self, card: HostCard, finished: Any) -> None:
        self._card, self._finished = card, finished

    def synchronize(self) -> None:
        if self._card.is_capturing():
            raise CaptureError("the host waits while a graph is recorded")
        self._finished()


#: The stream that recordings are made on.
_SIDE = 1001


class Graph:
    """Launches with their addresses, done each time that it is replayed."""

    def __init__(self, card: HostCard) -> None:
        self._card = card
        self._launches: list[Callable[[int], None]] = []

    def add(self, launch: Callable[[int], None]) -> None:
        """Record a launch; it takes the stream that it is done on."""
        self._launches.append(launch)

    def replay(self) -> None:
        if self._card.is_capturing():
            raise CaptureError("a graph is replayed while another is recorded")
        for launch in self._launches:
            launch(self._card.stream())


class HostCard(Card):
    """Stands in for `Card`: the device is the CPU, and streams are numbers.

    Whatever would reach `torch.cuda` fails, since the PyTorch of these tests has no CUDA.
    """

    def __init__(self, memory: Memory) -> None:
        self.device = torch.device("cpu")
        self._memory, self.hosted = memory, Memory()
        self.cached = False
        self.finished: list[Any] = []
        #: Graphs that are alive, and why CUDA records no more of them.
        self.graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self.records_nothing: str | None = None
        self._current = threading.local()
        self.stream = self._stream
        self.empty = self._empty

    def _stream(self) -> int:
        return int(getattr(self._current, "stream", 0))

    def _empty(
        self, shape: Sequence[int], strides: Sequence[int], *, dtype: torch.dtype
    ) -> torch.Tensor:
        if self.recording is not None:
            raise CaptureError("memory is allocated in a recording that was to have none")
        size = math.prod(shape) * dtype.itemsize
        return self._memory.allocate(size, self._stream()).view(dtype).as_strided(shape, strides)

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

    @property
    def recording(self) -> Graph | None:
        """The graph that this thread's launches go to."""
        return getattr(self._current, "recording", None)

    def recorded(self, launch: Callable[[int], None]) -> Callable[[], None]:
        assert not self.is_capturing(), "two recordings of one thread"
        graph = Graph(self)
        self._current.recording = graph
        try:
            with self.on(_SIDE, capturing=True):
                launch(self._stream())
                if self.records_nothing is not None:
                    raise CaptureError(self.records_nothing)
        finally:
            self._current.recording = None
        self.graphs.add(graph)
        return graph.replay

    @property
    def memory(self) -> int:
        return self._memory.capacity

    def host_bytes(self, size: int) -> torch.Tensor:
        """Return memory of another kind, which does not count as the card's."""
        return self.hosted.allocate(size, self._stream())

    def host_view(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return tensor if self.hosted.block_at(tensor.untyped_storage().data_ptr()) else None

    def keep(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            block = self._memory.block_at(tensor.data_ptr())
            if block is not None:
                block.kept.add(self._stream())

    def mark(self) -> Any:
        stream = self._stream()
        if self.is_capturing():
            raise CaptureError("an event is recorded in a graph, where nobody can wait for it")
        return Event(self, lambda: [finish(stream) for finish in self.finished])

    def release_cached(self) -> bool:
        cached, self.cached = self.cached, False
        return cached

    @property
    def name(self) -> str:
        return "NVIDIA Stand-In 4090"

    @property
    def driver(self) -> int:
        return 13
