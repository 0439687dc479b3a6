"""One execution context, prepared for one stream: a call sets only what changed since the last."""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.allocator import Allocated
from singlecard.network.card import Card
from singlecard.network.flavour import trt
from singlecard.network.logger import Messages

#: TensorRT's rule for the addresses of inputs and outputs (NvInferRuntime.h, setTensorAddress).
ALIGNMENT = 256

#: Combinations of input shapes whose output shapes are remembered; more begin anew.
_REMEMBERED = 1024

_Shapes = tuple[torch.Size, ...]
#: Shape and strides of an output; None where only the run tells.
_Extent = tuple[tuple[int, ...], tuple[int, ...]] | None
#: Name and type of an output, the place of the input that it lies in, and its extent.
_Result = tuple[str, torch.dtype, int | None, _Extent]

# What each call asks of all its inputs: mapped over them, the loops are C's.
_type, _device = operator.attrgetter("dtype"), operator.attrgetter("device")
_shape, _address = operator.attrgetter("shape"), torch.Tensor.data_ptr
_is_contiguous = torch.Tensor.is_contiguous


class Scratch(Protocol):
    """Scratch memory that engines on one stream take turns with."""

    lock: threading.Lock

    #: Counts how often the memory was replaced.
    generation: int

    def reserve(self, size: int, allocate: Callable[[int], torch.Tensor]) -> tuple[int, int]:
        """Return address and size of at least so many bytes; another block if it must be."""


@dataclass(frozen=True)
class Signature:
    """What an engine takes and gives, in the order of calls.

    Attributes:
        inputs, outputs: names.
        input_types, output_types: element types.
        in_place: for each output the place of the input whose memory it lies in, or None.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_types: tuple[torch.dtype, ...]
    output_types: tuple[torch.dtype, ...]
    in_place: tuple[int | None, ...]


class Context:
    """An execution context and what it was told last.

    A context keeps addresses and shapes between calls, so whoever calls it holds `lock`.
    """

    def __init__(
        self,
        signature: Signature,
        context: trt.IExecutionContext,
        held: Any,
        card: Card,
        messages: Messages,
        scratch_bytes: int,
    ) -> None:
        """Prepare.

        Args:
            signature: of the engine.
            context: TensorRT's own.
            held: what must live as long as it.
            card: where it runs.
            messages: TensorRT's.
            scratch_bytes: the scratch memory it must be given; 0 where it has its own, or none.
        """
        self._context = context
        self._held = held  # freed behind the context
        self._signature, self._card, self._messages = signature, card, messages
        self._scratch_bytes = scratch_bytes
        self._shapes: _Shapes | None = None
        self._known: dict[_Shapes, tuple[_Result, ...]] = {}
        self._results: tuple[_Result, ...] = ()
        #: Addresses that it was told last: of the inputs, as they have them, and of the outputs.
        self._read: list[int] | None = None
        self._written = [0] * len(signature.outputs)
        self._allocated: dict[str, Allocated] = {}
        self._nothing: torch.Tensor | None = None
        self._types = list(signature.input_types)
        self._devices = [card.device] * len(self._types)
        self._writes = any(place is not None for place in signature.in_place)
        self._own_lock = threading.Lock()
        self.is_new = True
        self.assign(0, None)

    def assign(self, stream: int, scratch: Scratch | None) -> None:
        """Make this the context of a stream."""
        self.stream, self.scratch, self._generation = stream, scratch, -1
        #: What a caller holds: engines that share scratch memory take turns with it.
        self.lock = self._own_lock if scratch is None else scratch.lock

    def __call__(self, values: Sequence[torch.Tensor], capturing: bool) -> list[torch.Tensor]:
        """Launch the engine on the current stream, which is this context's.

        Raises:
            RuntimeFailure: an input does not fit, or the launch failed.
            torch.OutOfMemoryError: there is no memory for the results, or for scratch.
        """
        self.check(values)
        given, addresses, copied = self._given(values)
        results = self._bind(given, addresses, self._card.empty)
        block = self.give_scratch(capturing)
        if self.stream and not capturing:
            self._card.keep(values)  # the caller may have made them on another stream
        self.launch(self.stream)
        del block
        if self._allocated:
            results = self._with_allocated(results)
        if self._writes:
            results = self.written(values, copied, results)
        return results

    def check(self, values: Sequence[torch.Tensor]) -> None:
        """Refuse inputs that the engine does not take.

        Raises:
            RuntimeFailure: one is of another type, or on another device.
        """
        if list(map(_type, values)) == self._types and list(map(_device, values)) == self._devices:
            return
        device = self._card.device
        for name, dtype, value in zip(self._signature.inputs, self._types, values, strict=True):
            if value.dtype != dtype or value.device != device:
                raise RuntimeFailure(
                    f"the engine's {name} takes {dtype} on {device}, got {value.dtype} on "
                    f"{value.device}: move or convert it before the call"
                )

    def bind(
        self, given: Sequence[torch.Tensor], empty: Callable[..., torch.Tensor]
    ) -> list[torch.Tensor]:
        """Set shapes and addresses of inputs that can be read; return the results' memory.

        Args:
            given: the inputs.
            empty: gives memory for a result: ``empty(shape, strides, dtype=...)``.

        Raises:
            RuntimeFailure: an input has a shape that the engine does not take.
        """
        return self._bind(given, list(map(_address, given)), empty)

    def _bind(
        self,
        given: Sequence[torch.Tensor],
        addresses: list[int],
        empty: Callable[..., torch.Tensor],
    ) -> list[torch.Tensor]:
        shapes = tuple(map(_shape, given))
        if shapes != self._shapes:
            self._set_shapes(shapes)
        if addresses != self._read:
            self._tell_inputs(addresses)
        written = self._written
        results: list[torch.Tensor] = []
        for at, (name, dtype, place, extent) in enumerate(self._results):
            if place is not None:
                result = given[place]
            elif extent is not None:
                result = empty(*extent, dtype=dtype)
            else:
                continue
            results.append(result)
            address = result.data_ptr() or self._no_address()
            if address != written[at]:
                written[at] = 0  # unknown, should it be refused
                self._tell(name, address)
                written[at] = address
        return results

    def launch(self, stream: int) -> None:
        """Launch the engine on a stream, with what it was told.

        Raises:
            RuntimeFailure: TensorRT could not.
        """
        if not self._context.execute_async_v3(stream):
            self._raise_launch_failure()

    @property
    def allocates(self) -> bool:
        """Whether it has asked for memory of an output whose size only the run tells."""
        return bool(self._allocated)

    def _given(
        self, values: Sequence[torch.Tensor]
    ) -> tuple[Sequence[torch.Tensor], list[int], dict[int, torch.Tensor]]:
        """Return what TensorRT can read, with its addresses, and which of it are copies."""
        addresses = list(map(_address, values))
        copied: dict[int, torch.Tensor] = {}
        # What was told before was aligned. In an address of all their bits, a low one is anyone's.
        if all(map(_is_contiguous, values)) and (
            addresses == self._read or not functools.reduce(operator.or_, addresses, 0) % ALIGNMENT
        ):
            return values, addresses, copied
        for place, value in enumerate(values):
            if not is_readable(value):
                shape = tuple(value.shape)
                copy = self._card.empty(shape, contiguous(shape), dtype=value.dtype)
                copied[place] = copy.copy_(value)
        given = [copied.get(place, value) for place, value in enumerate(values)]
        return given, list(map(_address, given)), copied

    def _set_shapes(self, shapes: _Shapes) -> None:
        before, self._shapes = self._shapes, None  # unknown, should one of them be refused
        for place, (name, shape) in enumerate(zip(self._signature.inputs, shapes, strict=True)):
            if before is not None and before[place] == shape:
                continue
            if not self._context.set_input_shape(name, tuple(shape)):
                raise RuntimeFailure(
                    f"the engine's {name} does not take the shape {list(shape)}: "
                    f"{self._messages.last_problem()}"
                )
        if shapes not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            about = self._signature
            outputs = zip(about.outputs, about.output_types, about.in_place, strict=True)
            self._known[shapes] = tuple((*output, self._extent(output[0])) for output in outputs)
        self._results, self._shapes = self._known[shapes], shapes

    def _extent(self, name: str) -> _Extent:
        shape = tuple(self._context.get_tensor_shape(name))
        if -1 not in shape:
            return shape, contiguous(shape)
        if name not in self._allocated:
            allocated = Allocated(self._card)
            if not self._context.set_output_allocator(name, allocated.callback):
                raise RuntimeFailure(
                    f"TensorRT takes no memory for the engine's {name}, whose shape only the run "
                    f"tells: {self._messages.last_problem()}"
                )
            self._allocated[name] = allocated
        return None

    def _tell_inputs(self, addresses: list[int]) -> None:
        before, self._read = self._read, None  # unknown, should one of them be refused
        for place, (name, address) in enumerate(
            zip(self._signature.inputs, addresses, strict=True)
        ):
            if before is None or before[place] != address:
                self._tell(name, address or self._no_address())
        self._read = addresses

    def _tell(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise RuntimeFailure(
                f"TensorRT takes no memory for the engine's {name}: {self._messages.last_problem()}"
            )

    def _no_address(self) -> int:
        """Return an address for tensors without elements, which have none; nobody reads there."""
        if self._nothing is None:
            self._nothing = self._card.bytes(ALIGNMENT)
        return self._nothing.data_ptr()

    @property
    def has_scratch(self) -> bool:
        """Whether the scratch memory that it was given last is still there."""
        scratch = self.scratch
        return not self._scratch_bytes or scratch is None or scratch.generation == self._generation

    def give_scratch(self, capturing: bool) -> torch.Tensor | None:
        """Give scratch memory if it is another block than at the last call."""
        size, scratch = self._scratch_bytes, self.scratch
        if not size or scratch is None:
            return None
        if capturing:
            # A graph keeps addresses: its memory comes from its own pool, and is never replaced.
            block = self._card.bytes(size)
            self._context.set_device_memory(block.data_ptr(), size)
            self._generation = -1
            return block
        if self._generation != scratch.generation:
            self._context.set_device_memory(*scratch.reserve(size, self._card.bytes))
            self._generation = scratch.generation
        return None

    def _raise_launch_failure(self) -> None:
        for allocated in self._allocated.values():
            allocated.raise_failure()
        raise RuntimeFailure(
            f"TensorRT could not launch the engine: {self._messages.last_problem()}"
        )

    def _with_allocated(self, results: list[torch.Tensor]) -> list[torch.Tensor]:
        rest = iter(results)
        return [
            self._allocated[name].take(dtype) if extent is None and place is None else next(rest)
            for name, dtype, place, extent in self._results
        ]

    def written(
        self,
        values: Sequence[torch.Tensor],
        copied: dict[int, torch.Tensor],
        results: list[torch.Tensor],
    ) -> list[torch.Tensor]:
        """Return inputs that were written to in the place of copies, with autograd told of it."""
        for index, place in enumerate(self._signature.in_place):
            if place is None:
                continue
            if place in copied:
                values[place].copy_(copied[place])
            else:
                torch.autograd.graph.increment_version(values[place])
            results[index] = values[place]
        return results


def is_readable(value: torch.Tensor) -> bool:
    """Tell whether TensorRT can read a tensor where it lies."""
    return value.is_contiguous() and not value.data_ptr() % ALIGNMENT


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)
