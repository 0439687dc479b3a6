"""A CUDA device as engines need it: its current stream, memory in a stream's order, its driver.

All that running an engine asks of CUDA goes through here, so that tests can put host memory in its
place.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from singlecard.host_memory import host_bytes, host_view

#: Held while a CUDA graph is recorded: PyTorch's generator of random numbers takes part in each
#: recording, and in one at a time.
_recording = threading.Lock()


class Card:
    """One CUDA device, through PyTorch's own streams and caching allocator."""

    #: The handle of the current stream.
    stream: Callable[[], int]

    #: A tensor in memory of the current stream: ``empty(shape, strides, dtype=...)``.
    empty: Callable[..., torch.Tensor]

    def __init__(self, device: torch.device) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        current: Any = torch._C._cuda_getCurrentRawStream
        self.stream = functools.partial(current, index)
        self.empty = functools.partial(torch.empty_strided, device=self.device)

    def is_current(self) -> bool:
        """Tell whether CUDA calls of this thread go to this device."""
        return bool(torch.cuda.current_device() == self.device.index)

    def entered(self) -> AbstractContextManager[Any]:
        """Make this the current device for a while."""
        return torch.cuda.device(self.device)

    def is_capturing(self) -> bool:
        """Tell whether the current stream's work goes into a CUDA graph instead of being done."""
        return bool(torch.cuda.is_current_stream_capturing())

    def recorded(self, launch: Callable[[int], None]) -> Callable[[], None]:
        """Record work in a CUDA graph; return what does it on the current stream.

        `torch.cuda.graph` would wait for the device and give all cached memory back first, to make
        room for what is allocated in the recording. Here nothing is.

        Args:
            launch: puts the work on the stream of the given handle, and allocates nothing.

        Raises:
            RuntimeError: the work cannot be recorded. The stream and the allocator are as before.
        """
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with _recording, torch.cuda.stream(self._side):
            try:
                # What other threads ask of CUDA meanwhile does no harm.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                launch(self.stream())
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the first error says more
                    self._end(graph, pool)
                raise
            self._end(graph, pool)
        return graph.replay

    def _end(self, graph: torch.cuda.CUDAGraph, pool: Any) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            # PyTorch leaves its allocator in the recording then, where memory that was used on
            # several streams is never reused again.
            end: Any = torch._C._cuda_endAllocateToPool
            with contextlib.suppress(RuntimeError):  # it was not in it yet
                end(self.device.index, pool)
            raise

    @functools.cached_property
    def _side(self) -> torch.cuda.Stream:
        """The stream that recordings are made on: the default one takes none."""
        return torch.cuda.Stream(self.device)

    def bytes(self, size: int) -> torch.Tensor:
        """Return memory of the current stream, aligned as every allocation is."""
        return self.empty((size,), (1,), dtype=torch.uint8)

    @property
    def memory(self) -> int:
        """Bytes of memory that the card has."""
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def host_bytes(self, size: int) -> torch.Tensor:
        """Return host memory that the card reads and writes as its own.

        Raises:
            torch.OutOfMemoryError: there is not so much that could be locked.
        """
        return host_bytes(size, self.device)

    def host_view(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the same memory as a tensor on the CPU, if it is such host memory."""
        return host_view(tensor)

    def keep(self, tensors: Sequence[torch.Tensor]) -> None:
        """Have the memory of tensors reused only after the current stream's work of now."""
        stream = torch.cuda.current_stream(self.device)
        for tensor in tensors:
            tensor.record_stream(stream)

    def mark(self) -> torch.cuda.Event:
        """Return an event behind the current stream's work of now."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def release_cached(self) -> bool:
        """Give the memory that PyTorch keeps for later back to CUDA; return whether there was any.

        TensorRT allocates weights itself, and cannot use what PyTorch keeps. This waits for the
        device, so it is for the moment when memory has run out.
        """
        kept = torch.cuda.memory_reserved(self.device)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device) < kept

    @property
    def name(self) -> str:
        """The model, such as ``NVIDIA GeForce RTX 4090``."""
        return torch.cuda.get_device_name(self.device)

    @property
    def driver(self) -> int:
        """The major version of CUDA that the driver is of, such as 13."""
        version = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
        return version.value // 1000


@functools.cache
def card_of(device: torch.device) -> Card:
    """Return the card of a device."""
    return Card(device)
