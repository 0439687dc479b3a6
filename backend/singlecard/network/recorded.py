"""One call of an engine with addresses that stay, so that it can be launched by a CUDA graph.

- Inputs that move are copied to memory of the graph before the launch. The others are read where
  they lie.
- Results are copied out of memory of the graph, to fresh memory that is the caller's. A graph that
  wrote there itself would have to be recorded for each address that PyTorch's allocator gives. What
  lies in an input's memory is written there.
- Scratch memory is the stream's, which all engines share, until it is replaced.
"""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card
from singlecard.network.contexts import Context, Signature, contiguous


class GraphMemory:
    """What the graphs of a stream read moved inputs from and write results to.

    Nothing there is of use when a call is done, and calls on one stream come one after the other:
    so they all use the same. A block goes with the last graph that uses it.
    """

    def __init__(self, card: Card) -> None:
        self._card = card
        self._blocks: weakref.WeakValueDictionary[int, _Block] = weakref.WeakValueDictionary()

    def block(self, place: int, size: int) -> _Block:
        """Return the block of a place, with at least so many bytes."""
        block = self._blocks.get(place)
        if block is None or block.memory.numel() < size:
            block = self._blocks[place] = _Block(self._card.bytes(size))
        return block


@dataclass(eq=False)
class _Block:
    memory: torch.Tensor


class Recording:
    """A context with shapes and addresses that stay, launched by a graph once there is one."""

    def __init__(
        self,
        context: Context,
        card: Card,
        signature: Signature,
        values: Sequence[torch.Tensor],
        moving: set[int],
        memory: GraphMemory,
    ) -> None:
        self.context, self._card = context, card
        self._blocks: list[_Block] = []

        def piece(place: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
            size = math.prod(shape) * dtype.itemsize
            self._blocks.append(memory.block(place, size))
            return self._blocks[-1].memory[:size].view(dtype).view(tuple(shape))

        given = list(values)
        for place in moving:
            given[place] = piece(place, values[place].shape, values[place].dtype)
        self._copies = [(place, given[place]) for place in moving]
        places = itertools.count(len(given))

        def empty(
            shape: Sequence[int], strides: Sequence[int], *, dtype: torch.dtype
        ) -> torch.Tensor:
            return piece(next(places), shape, dtype)

        results = context.bind(given, empty)
        if context.allocates:
            raise RuntimeFailure("only the run tells how large a result is")
        context.give_scratch(False)
        #: For each result the memory to copy it from, or the place of the input that it lies in.
        self._results: list[torch.Tensor | int] = [
            result if place is None else place
            for result, place in zip(results, signature.in_place, strict=True)
        ]
        self._writes = any(place is not None for place in signature.in_place)
        self._addresses = [
            (place, value.data_ptr()) for place, value in enumerate(values) if place not in moving
        ]
        self._launch: Callable[[], None] = functools.partial(context.launch, context.stream)

    def fits(self, values: Sequence[torch.Tensor]) -> bool:
        """Tell whether what it reads and writes in place is where it was recorded."""
        for place, address in self._addresses:
            if values[place].data_ptr() != address or not values[place].is_contiguous():
                return False
        return self.context.has_scratch

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on inputs that fit."""
        empty = self._card.empty
        results = [
            values[source]
            if isinstance(source, int)
            else empty(source.shape, contiguous(source.shape), dtype=source.dtype)
            for source in self._results
        ]
        if self.context.stream:
            self._card.keep(values)  # the caller may have made them on another stream
        with torch.no_grad():  # the graph's memory is no part of what the caller differentiates
            for place, copy in self._copies:
                copy.copy_(values[place])
            self._launch()
            for result, source in zip(results, self._results, strict=True):
                if not isinstance(source, int):
                    result.copy_(source)
        return self.context.written(values, {}, results) if self._writes else results

    def record(self) -> None:
        """Record what the last call launched: nothing was told to the context since.

        Raises:
            RuntimeError: it cannot be recorded.
        """
        self._launch = self._card.recorded(self.context.launch)
