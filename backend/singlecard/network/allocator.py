"""Memory for outputs whose size only the run tells."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card
from singlecard.network.flavour import trt


class Allocated:
    """Takes TensorRT's requests for one output's memory, and gives the output."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._memory: torch.Tensor | None = None
        self._shape: tuple[int, ...] | None = None
        self._failure: torch.OutOfMemoryError | None = None
        self.callback = _callback_class()(self)

    def reallocate(self, size: int) -> int:
        """Return the address of so many bytes, or 0 where there are not so many."""
        self._shape = None
        try:
            self._memory = self._card.bytes(max(size, 1))
        except torch.OutOfMemoryError as error:  # it must not pass through TensorRT
            self._failure = error
            return 0
        return self._memory.data_ptr()

    def notify(self, shape: Sequence[int]) -> None:
        """Take note of the output's shape."""
        self._shape = tuple(shape)

    def take(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the output, cut to its shape, and forget it.

        Raises:
            RuntimeFailure: TensorRT did not tell the shape.
        """
        memory, shape = self._memory, self._shape
        self._memory, self._shape, self._failure = None, None, None
        if memory is None or shape is None:
            raise RuntimeFailure("TensorRT did not tell how large an output of the engine is")
        size = math.prod(shape) * dtype.itemsize
        return memory[:size].view(dtype).view(shape)

    def raise_failure(self) -> None:
        """Raise what went wrong in a request."""
        failure, self._failure, self._memory = self._failure, None, None
        if failure is not None:
            raise failure


@functools.cache
def _callback_class() -> type:
    class Callback(trt.IOutputAllocator):  # type: ignore[misc]
        """TensorRT keeps it as long as the context, and calls it while it launches."""

        def __init__(self, target: Allocated) -> None:
            super().__init__()
            self.target = weakref.ref(target)  # which holds this, and goes with the context

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            target = self.target()
            return 0 if target is None else target.reallocate(size)

        def notify_shape(self, name: str, shape: Sequence[int]) -> None:
            target = self.target()
            if target is not None:
                target.notify(shape)

    return Callback
