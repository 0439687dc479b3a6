"""A CUDA device as engines need it: its current stream, memory in a stream's order, its driver.

All that running an engine asks of CUDA goes through here, so that tests can put host memory in its
place.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch


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

    def bytes(self, size: int) -> torch.Tensor:
        """Return memory of the current stream, aligned as every allocation is."""
        return self.empty((size,), (1,), dtype=torch.uint8)

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
