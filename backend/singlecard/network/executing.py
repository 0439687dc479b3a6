"""The runtime's side of the facade: a plan file becomes an engine on the current stream."""

from __future__ import annotations

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
from singlecard.network.runtime_settings import (
    Kernels,
    KernelStore,
    RuntimeSettings,
    new_context,
)
from singlecard.network.types import torch_from_trt
from singlecard.network.validity import plan_refusal
from singlecard.network.versions import new_runtime

#: What TensorRT said last, at most; it talks as long as an engine lives.
_MESSAGES = 200


class Plan(Protocol):
    """Where a plan lies, if it has no file of its own."""

    def mapped(self) -> AbstractContextManager[memoryview]:
        """Return the plan's bytes, mapped into memory."""


class Turns(Protocol):
    """Who may have weights on the card, where not all can."""

    def taken(self, engine: LoadedEngine) -> AbstractContextManager[Any]:
        """Have an engine's weights on the card for the time of a launch."""


class _Recent(Messages):
    """Keeps the newest messages."""

    def add(self, severity: str, text: str) -> None:
        super().add(severity, text)
        del self.entries[:-_MESSAGES]


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
        turns: Turns | None = None,
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
            turns: who may have weights on the card; None: everybody, all the time.

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
        self._refusals: dict[int, str] = {}
        self._lock = threading.Lock()
        self._scratch, self._turns = scratch, turns
        self._marks: dict[int, torch.cuda.Event] = {}
        with self.card.entered():
            self._runtime = new_runtime(self.logger, self.messages)
            self._engine = self._deserialize()
            self._set_budget()
        self._signature = self._read_signature()
        self._scratch_bytes = int(self._engine.device_memory_size_v2) if scratch is not None else 0
        self._kernels = None if store is None else Kernels(store)
        if self._kernels is not None:
            weakref.finalize(self, _save_kernels, self._kernels, self.card, os.getpid())

    def _deserialize(self) -> trt.ICudaEngine:
        mapped = _mapped(self.plan) if isinstance(self.plan, Path) else self.plan.mapped()
        runtime: Any = self._runtime
        with mapped as view:
            refusal = plan_refusal(runtime, view)
            if refusal is not None:
                raise RuntimeFailure(
                    f"the engine {self.plan} cannot run on {self.device}: {refusal}"
                )
            if self._turns is not None:
                if not hasattr(runtime, "defer_weights_loading"):
                    raise RuntimeFailure(
                        "the installed TensorRT cannot take weights off the card again: run "
                        "without weight turns, or install tensorrt-rtx 1.7 or newer"
                    )
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
                if self._turns is None:
                    results = context(values, capturing)
                else:
                    results = self._run_in_turn(context, values, capturing)
            if self._kernels is not None and context.is_new:
                context.is_new = False
                self._kernels.save()
            return results

    def _run_in_turn(
        self, context: Context, values: Sequence[torch.Tensor], capturing: bool
    ) -> list[torch.Tensor]:
        assert self._turns is not None
        if capturing:
            raise RuntimeFailure(
                "an engine whose weights take turns on the card cannot be recorded in a CUDA graph"
            )
        with self._turns.taken(self):
            results = context(values, False)
            self._marks[context.stream] = self.card.mark()
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
            return context

    def _new_context(self, stream: int) -> Context:
        def create() -> tuple[trt.IExecutionContext | None, Any]:
            return new_context(self._engine, self.settings, self._scratch is None, self._kernels)

        made, held = create()
        if made is None and self.card.release_cached():
            made, held = create()
        if made is None:
            self._refusals[stream] = (
                f"TensorRT could not create an execution context for {self.plan}, mostly for want "
                f"of GPU memory ({self._engine.device_memory_size_v2} bytes of scratch): "
                f"{self.messages.last_problem()}. Free memory, and start again"
            )
            raise RuntimeFailure(self._refusals[stream])
        return Context(self._signature, made, held, self.card, self.messages, self._scratch_bytes)

    def _taken_over(self) -> Context:
        """Take a context from another stream: none can be made while a graph is recorded."""
        if self.settings.cuda_graphs:
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

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take on the card."""
        engine: Any = self._engine
        library: Any = trt  # what has weights that come and go has this too
        return int(engine.get_engine_stat(library.EngineStat.TOTAL_WEIGHTS_SIZE))

    def load_weights(self) -> None:
        """Put the weights on the card; of an engine that takes turns.

        Raises:
            RuntimeFailure: TensorRT could not.
        """
        engine: Any = self._engine
        mapped = _mapped(self.plan) if isinstance(self.plan, Path) else self.plan.mapped()
        with self._lock, self._entered(), mapped as view:
            loaded = engine.load_weights(view) or (
                self.card.release_cached() and engine.load_weights(view)
            )
        if not loaded:
            raise RuntimeFailure(
                f"TensorRT could not load the weights of {self.plan}: "
                f"{self.messages.last_problem()}"
            )

    def unload_weights(self) -> None:
        """Take the weights off the card, behind all calls that were launched."""
        engine: Any = self._engine
        with self._lock, self._entered():
            while self._marks:
                self._marks.popitem()[1].synchronize()
            engine.unload_weights()

    def _entered(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.card.is_current() else self.card.entered()


def _save_kernels(kernels: Kernels, card: Card, process: int) -> None:
    """Keep kernels when an engine goes, at the latest when its process ends."""
    if os.getpid() == process:  # a forked child has no CUDA
        with card.entered():
            kernels.save()
