"""The runtime's side of the facade: a plan file becomes an engine on the current stream."""

from __future__ import annotations

import functools
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card, card_of
from singlecard.network.contexts import Context, Scratch, Signature
from singlecard.network.flavour import trt
from singlecard.network.logger import Messages, new_logger
from singlecard.network.recording import Recordings, records_calls
from singlecard.network.runtime_settings import (
    Kernels,
    KernelStore,
    RuntimeSettings,
    has_own_graphs,
    new_context,
)
from singlecard.network.types import torch_from_trt
from singlecard.network.validity import plan_refusal
from singlecard.network.versions import new_runtime
from singlecard.network.weights import MovingWeights

#: What a plan may hold beside weights that stream: kernels, and weights that cannot be streamed.
_NO_WEIGHTS = 16 << 20

#: What TensorRT said last, at most; it talks as long as an engine lives.
_MESSAGES = 200


class Plan(Protocol):
    """Where a plan lies, if it has no file of its own."""

    @property
    def size(self) -> int:
        """Bytes that the plan has."""

    def mapped(self) -> AbstractContextManager[memoryview]:
        """Return the plan's bytes, mapped into memory."""


class _Recent(Messages):
    """Keeps the newest messages."""

    def add(self, severity: str, text: str) -> None:
        super().add(severity, text)
        del self.entries[:-_MESSAGES]


def plan_size(plan: Path | Plan) -> int:
    """Return the bytes that a plan has."""
    return plan.stat().st_size if isinstance(plan, Path) else plan.size


@contextmanager
def _mapped(file: Path) -> Iterator[memoryview]:
    with file.open("rb") as opened:
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            with memoryview(content) as view:
                yield view


class LoadedEngine:
    """One plan on one device, with one execution context for each stream it was called on."""

    def __init__(
        self,
        plan: Path | Plan,
        device: torch.device,
        inputs: Sequence[str],
        outputs: Sequence[str],
        in_place: Mapping[str, str],
        *,
        settings: RuntimeSettings | None = None,
        scratch: Callable[[torch.device, int], Scratch] | None = None,
        store: KernelStore | None = None,
        moves: bool = False,
        checked: Callable[[Card], None] | None = None,
    ) -> None:
        """Check and deserialize a plan.

        Args:
            plan: its file, or where else it lies.
            device: the CUDA device to run on.
            inputs, outputs: names of the network's inputs and outputs, in the order of calls.
            in_place: for each output that lies in an input's memory, that input.
            settings: how it is run.
            scratch: gives the scratch memory of a stream; None: each context has its own.
            store: where kernels that are compiled here are kept; None: nowhere.
            moves: its weights come and go: it is loaded without them, if that can be.
            checked: called when the plan is found to be right, before memory is taken for it.

        Raises:
            RuntimeFailure: the plan cannot run here, or TensorRT refused it; with its own words.
        """
        self.plan, self.settings = plan, settings or RuntimeSettings()
        self.messages = _Recent()
        self.logger = new_logger(self.messages)
        self.card: Card = card_of(device)
        self.device, self.inputs, self.outputs = device, tuple(inputs), tuple(outputs)
        self.in_place = dict(in_place)
        self._contexts: dict[int, Context] = {}
        self._recordings: dict[int, Recordings] = {}
        self._refusals: dict[int, str] = {}
        self._lock, self._creating = threading.Lock(), threading.Lock()
        self._scratch, self._moves = scratch, moves
        #: Whether it was loaded without its weights.
        self.is_deferred = False
        self._marks: dict[int, torch.cuda.Event] = {}
        with self.card.entered():
            self._runtime = new_runtime(self.logger, self.messages)
            self._engine = self._deserialize(checked)
            self._set_budget()
        self._signature = self._read_signature()
        self._scratch_bytes = int(self._engine.device_memory_size_v2) if scratch is not None else 0
        self._kernels = None if store is None else Kernels(store)
        if self._kernels is not None:
            weakref.finalize(self, _save_kernels, self._kernels, self.card, os.getpid())

    def _deserialize(self, checked: Callable[[Card], None] | None) -> trt.ICudaEngine:
        runtime: Any = self._runtime
        with self._mapped() as view:
            refusal = plan_refusal(runtime, view)
            if refusal is not None:
                raise RuntimeFailure(
                    f"the engine {self.plan} cannot run on {self.device}: {refusal}"
                )
            if checked is not None:
                checked(self.card)
            # Nothing says that weights which are streamed can be taken away.
            if self._moves and self.settings.weight_budget is None:
                self.is_deferred = hasattr(runtime, "defer_weights_loading")
            if self.is_deferred:
                runtime.defer_weights_loading = True
            engine = runtime.deserialize_cuda_engine(view)
            if engine is None and self.card.release_cached():
                engine = runtime.deserialize_cuda_engine(view)
        if engine is None:
            raise RuntimeFailure(
                f"TensorRT could not load the engine {self.plan}: {self.messages.last_problem()}"
            )
        return engine

    def _set_budget(self) -> None:
        budget = self.settings.weight_budget
        if budget is None:
            return
        streamable = int(self._engine.streamable_weights_size)
        size = plan_size(self.plan)
        if size - streamable > budget + _NO_WEIGHTS:
            raise RuntimeFailure(
                f"the engine {self.plan} was built without weight streaming, or can stream only "
                f"{streamable} of its {size} bytes, and {budget} of memory_budget are its share: "
                "build or export the model with a memory_budget too, or give a larger one"
            )
        if streamable:
            self._engine.weight_streaming_budget_v2 = min(budget, streamable)

    def _read_signature(self) -> Signature:
        types = [
            tuple(torch_from_trt(self._engine.get_tensor_dtype(name)) for name in names)
            for names in (self.inputs, self.outputs)
        ]
        places = (self.in_place.get(name) for name in self.outputs)
        in_place = tuple(None if name is None else self.inputs.index(name) for name in places)
        return Signature(self.inputs, self.outputs, types[0], types[1], in_place)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on the current stream; the results come from PyTorch's caching allocator.

        A result that lies in an input's memory is that input, which holds its new value.

        Raises:
            RuntimeFailure: an input does not fit, memory ran out, or the launch failed. Nothing
                was written to any input.
        """
        card = self.card
        try:
            if card.is_current():
                return self._run(values)
            with card.entered():
                return self._run(values)
        except torch.OutOfMemoryError as error:
            raise RuntimeFailure(
                f"{self.device} has too little free memory to run the engine {self.plan}: {error}. "
                "Free memory, or call with smaller inputs"
            ) from error

    def _run(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        stream = self.card.stream()
        capturing = self.card.is_capturing()
        while True:
            context = self._contexts.get(stream)
            if context is None:
                context = self._make_context(stream, capturing)
            with context.lock:
                if context.stream != stream:
                    continue  # a capture took it over
                recordings = None if capturing else self._recordings.get(stream)
                try:
                    if recordings is None:
                        results = context(values, capturing)
                    else:
                        results = recordings(context, values, self._try_context)
                finally:  # a call that fails may have launched before
                    if self._moves and not capturing:
                        self._marks[stream] = self.card.mark()
            if self._kernels is not None and context.is_new:
                context.is_new = False
                self._kernels.save()
            return results

    def _make_context(self, stream: int, capturing: bool) -> Context:
        with self._lock:
            if stream in self._contexts:
                return self._contexts[stream]
            if stream in self._refusals:
                raise RuntimeFailure(self._refusals[stream])
            scratch = None if self._scratch is None else self._scratch(self.device, stream)
            context = self._taken_over() if capturing else self._new_context(stream)
            with context.lock:
                context.assign(stream, scratch)
            self._contexts[stream] = context
            if stream not in self._recordings and not capturing and self._records_calls():
                recordings = Recordings(self.card, self._signature, stream, scratch)
                self._recordings[stream] = recordings
            return context

    def _records_calls(self) -> bool:
        return records_calls(self.settings, self._engine, self._moves)

    def _new_context(self, stream: int) -> Context:
        context = self._try_context()
        if context is None:
            self._refusals[stream] = (
                f"TensorRT could not create an execution context for {self.plan}, mostly for want "
                f"of GPU memory ({self._engine.device_memory_size_v2} bytes of scratch): "
                f"{self.messages.last_problem()}. Free memory, and start again"
            )
            raise RuntimeFailure(self._refusals[stream])
        return context

    def _try_context(self) -> Context | None:
        """Return a new context without a stream; None where TensorRT could not make one."""

        def create() -> tuple[trt.IExecutionContext | None, Any]:
            return new_context(self._engine, self.settings, self._scratch is None, self._kernels)

        with self._creating:  # nothing says that threads may make two at the same time
            made, held = create()
            if made is None and self.card.release_cached():
                made, held = create()
        if made is None:
            return None
        return Context(self._signature, made, held, self.card, self.messages, self._scratch_bytes)

    def _taken_over(self) -> Context:
        """Take a context from another stream: none can be made while a graph is recorded."""
        if self.settings.cuda_graphs and has_own_graphs():
            raise RuntimeFailure(
                "the engine records CUDA graphs itself, so it cannot be part of another: run it "
                "without the setting cuda_graphs, or outside of torch.cuda.graph"
            )
        if not self._contexts:
            raise RuntimeFailure(
                "an engine must have run once before it is recorded in a CUDA graph: call it "
                "before torch.cuda.graph"
            )
        _, context = self._contexts.popitem()
        return context

    # Weights that come and go -----------------------------------------------------------------

    def load_weights(self) -> None:
        """Put the weights on the card, of an engine that was loaded without.

        Raises:
            RuntimeFailure: TensorRT could not.
        """
        with self._lock, self._entered():
            self._weights.put_on_card()

    def unload_weights(self) -> None:
        """Take the weights off the card again, when all calls are done."""
        with self._lock, self._entered():
            self._weights.take_off_card()

    @functools.cached_property
    def _weights(self) -> MovingWeights:
        return MovingWeights(self._engine, self.card, self.messages, self._mapped, str(self.plan))

    def _mapped(self) -> AbstractContextManager[memoryview]:
        return _mapped(self.plan) if isinstance(self.plan, Path) else self.plan.mapped()

    def finish(self) -> None:
        """Wait for all calls that were launched, of an engine whose weights come and go."""
        with self._lock, self._entered():
            while self._marks:
                self._marks.popitem()[1].synchronize()

    def _entered(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.card.is_current() else self.card.entered()


def _save_kernels(kernels: Kernels, card: Card, process: int) -> None:
    """Keep kernels when an engine goes, at the latest when its process ends."""
    if os.getpid() == process:  # a forked child has no CUDA
        with card.entered():
            kernels.save()
