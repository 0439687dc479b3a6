"""Calls of an engine in CUDA graphs, for a TensorRT that records none of its own.

A graph repeats the launches of one call at the addresses it was recorded with. So each graph is for
one combination of input shapes, and has a context of its own: what a context keeps on the card
changes with the shapes it is given, and NVIDIA advises one context for each graph.

An input that came from the same address twice, such as a parameter, is taken to stay there. When it
moves the graph is recorded again, and copies that input from then on. So each graph is recorded at
most once for each input, and again when scratch memory was replaced. Of a tensor that is written in
place, another address is another graph.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card
from singlecard.network.contexts import Context, Scratch, Signature, is_readable
from singlecard.network.flavour import trt
from singlecard.network.recorded import GraphMemory, Recording
from singlecard.network.runtime_settings import RuntimeSettings, has_own_graphs

log = logging.getLogger("singlecard.runtime")

#: Combinations of input shapes, and of addresses that are written to, that one engine remembers on
#: one stream. What comes again before so many others did is recorded.
GRAPHS = 8

_Key = tuple[tuple[torch.Size, ...], tuple[int, ...]]


def records_calls(settings: RuntimeSettings, engine: trt.ICudaEngine, moves: bool) -> bool:
    """Tell whether calls of an engine are to be recorded here; say once why not, if it was asked.

    Args:
        settings: how it is run.
        engine: the engine, with its weight streaming budget set.
        moves: whether its weights come and go.
    """
    if not settings.cuda_graphs or has_own_graphs():
        return False
    streamable = int(engine.streamable_weights_size)
    if moves:
        _say("its weights come and go within a memory budget, and a graph keeps addresses")
    elif streamable and int(engine.weight_streaming_budget_v2) < streamable:
        _say("its weights are copied to the card at each call")
    else:
        return True
    return False


@functools.cache
def _say(reason: str) -> None:
    log.warning("an engine runs without CUDA graphs: %s", reason)


@dataclass
class _Seen:
    """What is known of calls with one combination of shapes.

    Attributes:
        addresses: of the inputs, at the last call.
        moving: places of inputs that did not come from one address.
        recording: theirs, from the second call on.
    """

    addresses: list[int]
    moving: set[int] = field(default_factory=set)
    recording: Recording | None = None


class Recordings:
    """The graphs of one engine on one stream. Whoever calls holds the lock of its context."""

    def __init__(
        self, card: Card, signature: Signature, stream: int, scratch: Scratch | None
    ) -> None:
        self._card, self._signature = card, signature
        self._stream, self._scratch = stream, scratch
        self._written = sorted({place for place in signature.in_place if place is not None})
        self._seen: OrderedDict[_Key, _Seen] = OrderedDict()
        self._spare: list[Context] = []
        self._memory = GraphMemory(card)
        self._gave_up = False

    def __call__(
        self,
        context: Context,
        values: Sequence[torch.Tensor],
        new_context: Callable[[], Context | None],
    ) -> list[torch.Tensor]:
        """Run the engine on the current stream, with a graph where there is one.

        Args:
            context: launches what is not recorded.
            values: the inputs.
            new_context: makes one of the same engine, without a stream; None where it cannot.

        Raises:
            RuntimeFailure: an input does not fit, or the launch failed.
            torch.OutOfMemoryError: there is no memory for the results, or for scratch.
        """
        if self._gave_up:
            return context(values, False)
        context.check(values)
        key = self._key(values)
        if key is None:
            return context(values, False)
        seen = self._seen.get(key)
        if seen is None:
            results = context(values, False)
            self._remember(key, values)
            return results
        self._seen.move_to_end(key)
        try:
            if seen.recording is not None and seen.recording.fits(values):
                return seen.recording(values)
            return self._record(seen, context, values, new_context)
        except torch.OutOfMemoryError as error:  # which comes before anything is launched
            reason = str(error)
        # Behind the handler, since an error holds what was made on the way to it.
        self._give_up(reason)
        return context(values, False)

    def _key(self, values: Sequence[torch.Tensor]) -> _Key | None:
        """Return what a graph is for; None where a tensor cannot be written where it lies."""
        for place in self._written:
            if not is_readable(values[place]):
                return None
        shapes = tuple([value.shape for value in values])
        return shapes, tuple([values[place].data_ptr() for place in self._written])

    def _remember(self, key: _Key, values: Sequence[torch.Tensor]) -> None:
        self._seen[key] = _Seen([value.data_ptr() for value in values])
        if len(self._seen) > GRAPHS:
            _, oldest = self._seen.popitem(last=False)
            self._spare += self._released(oldest)

    def _released(self, seen: _Seen) -> list[Context]:
        """Drop a graph; return its context."""
        recording, seen.recording = seen.recording, None
        if recording is None:
            return []
        self._card.mark().synchronize()  # CUDA does not say that a graph may go while it runs
        return [recording.context]

    def _record(
        self,
        seen: _Seen,
        context: Context,
        values: Sequence[torch.Tensor],
        new_context: Callable[[], Context | None],
    ) -> list[torch.Tensor]:
        """Run with the context of a graph, and record the same for the next call."""
        self._spare += self._released(seen)
        for place, value in enumerate(values):
            if value.data_ptr() != seen.addresses[place] or not is_readable(value):
                seen.moving.add(place)
            seen.addresses[place] = value.data_ptr()
        try:
            own = self._spare.pop() if self._spare else self._new_context(new_context)
            # Inference mode would make memory that calls outside of it cannot write to.
            with torch.inference_mode(False):
                recording = Recording(
                    own, self._card, self._signature, values, seen.moving, self._memory
                )
        except RuntimeFailure as error:
            self._give_up(str(error))
            return context(values, False)
        try:
            # What is recorded must have run before, with the same shapes.
            results = recording(values)
        except BaseException:
            self._spare.append(own)
            raise
        try:
            recording.record()
        except RuntimeError as error:
            self._give_up(str(error))
        else:
            seen.recording = recording
        return results

    def _new_context(self, new_context: Callable[[], Context | None]) -> Context:
        made = new_context()
        if made is None:
            raise RuntimeFailure("TensorRT could not create another execution context")
        made.assign(self._stream, self._scratch)
        return made

    def _give_up(self, reason: str) -> None:
        """Run without graphs from now on, and give their memory back."""
        self._gave_up = True
        _say(reason)
        self._card.mark().synchronize()
        for seen in self._seen.values():
            seen.recording = None
        self._seen.clear()
        self._spare.clear()
        self._memory = GraphMemory(self._card)
