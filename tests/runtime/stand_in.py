"""Stands in for TensorRT's runtime objects on a machine without a card.

It has the methods of the real classes that the runtime uses, with their arguments (a test
compares them), computes in host memory, and raises `Misuse` where a call would be wrong
on a card: out of order, from two threads at once, with an address that is null, not aligned, too
small or freed, on another stream than the current one.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt_rtx as real
import torch

from singlecard.network.types import trt_from_torch
from tests.runtime.memory import ALIGNMENT, CaptureError, Graph, HostCard, Memory

HEADER = 64

#: What weights of engines are, byte by byte.
PATTERN = 0x5C

Shapes = Sequence[tuple[int, ...]]


class Misuse(AssertionError):
    """A call that would be wrong on a card."""


@dataclass
class Spec:
    """What an engine is: types and extents of its inputs (-1: dynamic), and what it computes.

    Attributes:
        inputs: by name, type and shape.
        outputs: by name, the type.
        shapes: output shapes for input shapes; -1 where only the run tells.
        compute: outputs for inputs. In-place ones are the inputs' new values.
        aliases: for each output that lies in an input's memory, that input.
        scratch, weights, streamable: bytes.
        bits: what `get_engine_validity` finds wrong.
        refusals: times that deserialization, creating a context, a launch, or a launch that is
            recorded fails.
        kernels: what the JIT compiles for this engine, by any shape.
    """

    inputs: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    outputs: dict[str, torch.dtype]
    shapes: Callable[[Shapes], Shapes]
    compute: Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]
    aliases: dict[str, str] = field(default_factory=dict)
    scratch: int = 1024
    weights: int = 0
    streamable: int = 0
    bits: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()

    def refuses(self, what: str) -> bool:
        left = self.refusals.get(what, 0)
        self.refusals[what] = left - 1
        return left > 0


class _Strict:
    """Takes no attribute that the real class does not have."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and not isinstance(getattr(type(self), name, None), property):
            raise Misuse(f"{type(self).__name__} has no {name}")
        super().__setattr__(name, value)


def _noted(method: Callable[..., Any]) -> Callable[..., Any]:
    """Count a call of the library."""

    @functools.wraps(method)
    def call(self: Any, *args: Any) -> Any:
        noted = tuple(arg for arg in args if isinstance(arg, (str, int, tuple)))  # nothing is held
        self._machine.calls.append((type(self).__name__, method.__name__, noted))
        return method(self, *args)

    return call


class IRuntimeCache(_Strict):
    """Kernels as lines of text. The machine says whether filling it twice adds or replaces."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._kernels: set[str] = set()

    @_noted
    def serialize(self) -> bytes:
        return "\n".join(sorted(self._kernels)).encode()

    @_noted
    def deserialize(self, blob: bytes) -> bool:
        if not self._machine.card.is_current():
            raise Misuse("a runtime cache is filled without its device being current")
        if b"other card" in blob:
            return False
        found = set(bytes(blob).decode().split("\n"))
        self._kernels = found | (self._kernels if self._machine.cache_adds else set())
        return True

    @_noted
    def reset(self) -> bool:
        self._kernels.clear()
        return True


class FullRuntimeConfig(_Strict):
    """What full TensorRT has of it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._strategy = real.ExecutionContextAllocationStrategy.STATIC

    @_noted
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        if not isinstance(strategy, real.ExecutionContextAllocationStrategy):
            raise TypeError(strategy)
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy


class IRuntimeConfig(FullRuntimeConfig):
    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._graphs = real.CudaGraphStrategy.DISABLED
        self._specialization = real.DynamicShapesKernelSpecializationStrategy.LAZY
        self._cache: IRuntimeCache | None = None

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: Any) -> None:
        if not isinstance(value, real.CudaGraphStrategy):
            raise TypeError(value)
        self._graphs = value

    @property
    def dynamic_shapes_kernel_specialization_strategy(self) -> Any:
        return self._specialization

    @dynamic_shapes_kernel_specialization_strategy.setter
    def dynamic_shapes_kernel_specialization_strategy(self, value: Any) -> None:
        if not isinstance(value, real.DynamicShapesKernelSpecializationStrategy):
            raise TypeError(value)
        self._specialization = value

    @_noted
    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(self._machine)

    @_noted
    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class FullRuntime(_Strict):
    """What full TensorRT has of it."""

    def __init__(self, machine: Machine, logger: Any) -> None:
        self._machine, self._logger, self._deferred = machine, logger, False

    @_noted
    def deserialize_cuda_engine(self, serialized_engine: memoryview) -> ICudaEngine | None:
        if not self._machine.card.is_current():
            raise Misuse("an engine is loaded without its device being current")
        spec = self._machine.spec(serialized_engine)
        if spec.refuses("load"):
            self._logger.log(real.ILogger.Severity.ERROR, "OutOfMemory: out of memory")
            return None
        return ICudaEngine(self, spec, self._deferred)


class Runtime(FullRuntime):
    @property
    def engine_header_size(self) -> int:
        return HEADER

    @property
    def defer_weights_loading(self) -> bool:
        return self._deferred

    @defer_weights_loading.setter
    def defer_weights_loading(self, value: bool) -> None:
        self._deferred = value

    @_noted
    def get_engine_validity(self, buffer: memoryview) -> tuple[Any, int]:
        bits = self._machine.spec(buffer).bits
        found = real.EngineValidity.INVALID if bits else real.EngineValidity.VALID
        return found, bits


class ICudaEngine(_Strict):
    def __init__(self, runtime: FullRuntime, spec: Spec, deferred: bool) -> None:
        self._machine, self._runtime, self._spec = runtime._machine, runtime, spec
        self._deferred, self._budget, self._in_flight = deferred, spec.streamable, set[int]()
        self._contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self._blob: torch.Tensor | None = None
        if not deferred:
            self._take(memoryview(b""))
        self._machine.engines.add(self)
        self._machine.card.finished.append(self._in_flight.discard)

    @property
    def device_memory_size_v2(self) -> int:
        return self._spec.scratch + (self._spec.streamable - self._budget) // 2

    @property
    def streamable_weights_size(self) -> int:
        return self._spec.streamable

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value: int) -> None:
        if self._contexts:
            raise Misuse("the weight streaming budget is changed while there are contexts")
        if not 0 <= value <= self._spec.streamable:
            raise Misuse(f"weight streaming budget {value} of {self._spec.streamable}")
        self._budget = value

    @property
    def weights_loaded(self) -> bool:
        return self._blob is not None

    @_noted
    def get_tensor_dtype(self, name: str) -> Any:
        known = {**{key: kind for key, (kind, _) in self._spec.inputs.items()}}
        return trt_from_torch((known | self._spec.outputs)[name])

    @_noted
    def create_runtime_config(self) -> FullRuntimeConfig:
        return self._machine.config_class(self._machine)

    @_noted
    def create_execution_context(
        self, runtime_config: FullRuntimeConfig
    ) -> IExecutionContext | None:
        if not isinstance(runtime_config, FullRuntimeConfig):
            raise TypeError(runtime_config)
        self._machine.refuse_in_recordings("a context is created")
        if self._spec.refuses("context"):
            self._runtime._logger.log(real.ILogger.Severity.ERROR, "out of memory")
            return None
        cache = getattr(runtime_config, "_cache", None)
        if cache is not None:
            self._machine.compiled += len(set(self._spec.kernels) - cache._kernels)
            cache._kernels.update(self._spec.kernels)
        return IExecutionContext(self, runtime_config)

    @_noted
    def load_weights(self, blob: memoryview) -> bool:
        self._machine.refuse_in_recordings("weights are loaded")
        if not self._deferred or self._blob is not None:
            return False
        if self._machine.spec(blob) is not self._spec:
            return False
        self._take(blob)
        return True

    def _take(self, blob: memoryview | None) -> torch.Tensor:
        """Have weights on the card: those of a plan, or what they come to be."""
        self._blob = self._machine.memory.allocate(self._spec.weights, 0)
        if blob is not None:
            self._blob.fill_(PATTERN)
        return self._blob

    @_noted
    def create_weights_manager(self) -> IWeightsManager | None:
        return None if self._spec.refuses("manager") else IWeightsManager(self)

    @_noted
    def unload_weights(self) -> bool:
        self._machine.refuse_in_recordings("weights are unloaded")
        if self._in_flight:
            raise Misuse(f"weights are unloaded while streams {self._in_flight} may read them")
        if not self._deferred or self._blob is None:
            return False
        self._blob = None
        return True


class IWeightsManager(_Strict):
    """Gives the weights out, and takes them back."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._machine, self._engine = engine._machine, engine

    def _check(self, address: int, size: int, location: Any, stream: int) -> memoryview:
        card = self._machine.card
        if location != real.TensorLocation.HOST or size != self.get_size():
            raise Misuse(f"{size} bytes at {location}, of {self.get_size()}")
        if stream != card.stream() or not card.is_current():
            raise Misuse(f"weights are moved on stream {stream}, not {card.stream()}")
        block = card.hosted.block_at(address)
        if block is None or block.address + block.size < address + size:
            raise Misuse(f"{size} bytes at {address:#x} are no memory of the host's")
        return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")

    def get_size(self) -> int:
        return self._engine._spec.weights

    @_noted
    def save_to_buffer(
        self, destination: int, size: int, location: Any, stream_handle: int
    ) -> bool:
        memory = self._check(destination, size, location, stream_handle)
        if self._engine._spec.refuses("save") or self._engine._blob is None:
            return False
        memory[:] = self._engine._blob.numpy().data  # type: ignore[assignment]
        return True

    @_noted
    def restore_from_buffer(
        self, source: int, size: int, location: Any, stream_handle: int
    ) -> bool:
        memory = self._check(source, size, location, stream_handle)
        if self._engine._spec.refuses("restore") or self._engine._blob is not None:
            return False
        self._engine._take(None).copy_(torch.frombuffer(memory, dtype=torch.uint8))
        return True

    @_noted
    def unload(self, stream_handle: int) -> bool:
        if self._engine._in_flight:
            raise Misuse("weights are unloaded while streams may read them")
        if self._engine._spec.refuses("unload") or self._engine._blob is None:
            return False
        self._engine._blob = None
        return True


class IExecutionContext(_Strict):
    def __init__(self, engine: ICudaEngine, config: FullRuntimeConfig) -> None:
        self._machine, self._engine, self._spec = engine._machine, engine, engine._spec
        self._config = weakref.ref(config)  # the caller must hold it
        self._cache = weakref.ref(getattr(config, "_cache", None) or config)
        self._managed = config.get_execution_context_allocation_strategy().name == "USER_MANAGED"
        self._own = None
        if not self._managed:
            self._own = self._machine.memory.allocate(engine.device_memory_size_v2, 0)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch = (0, 0)
        self._version = 0  # of the shapes
        self._thread: int | None = None
        self._stream: int | None = None
        self._ran: dict[str, tuple[int, ...]] | None = None
        engine._contexts.add(self)
        self._machine.contexts.add(self)

    def _enter(self) -> None:
        """Refuse two threads that prepare calls at once."""
        here = threading.get_ident()
        if self._thread not in (None, here):
            raise Misuse("two threads use one context at the same time")
        self._thread = here
        if self._config() is None or self._cache() is None:
            raise Misuse("a context outlives its runtime configuration or cache")

    @_noted
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._enter()
        if type(shape) is not tuple:
            raise TypeError("set_input_shape takes a tuple, a list or Dims")
        declared = self._spec.inputs[name][1]
        fits = len(shape) == len(declared) and all(
            want in (-1, size) for want, size in zip(declared, shape, strict=True)
        )
        if not fits:
            self._thread = None
            self._engine._runtime._logger.log(real.ILogger.Severity.ERROR, f"bad {name}")
            return False
        if self._shapes.get(name) != shape:
            self._version += 1
        self._shapes[name] = shape
        return True

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        missing = set(self._spec.inputs) - set(self._shapes)
        if missing:
            raise Misuse(f"output shapes before the shapes of {sorted(missing)}")
        given = [self._shapes[name] for name in self._spec.inputs]
        return dict(zip(self._spec.outputs, map(tuple, self._spec.shapes(given)), strict=True))

    @_noted
    def get_tensor_shape(self, name: str) -> Any:
        self._enter()
        return real.Dims(self._output_shapes()[name])

    @_noted
    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._enter()
        if name not in self._spec.inputs and name not in self._spec.outputs:
            return False
        if not memory or memory % ALIGNMENT:
            raise Misuse(f"{name} gets the address {memory:#x}")
        self._addresses[name] = memory
        return True

    @_noted
    def set_output_allocator(self, name: str, output_allocator: Any) -> bool:
        self._enter()
        if not isinstance(output_allocator, real.IOutputAllocator):
            raise TypeError(output_allocator)
        if name in self._allocators:
            raise Misuse(f"{name} gets another allocator: the context keeps each for ever")
        self._allocators[name] = output_allocator
        return name in self._spec.outputs

    @_noted
    def set_device_memory(self, memory: int, size: int) -> None:
        self._enter()
        if not self._managed:
            raise Misuse("a context with scratch memory of its own is given some")
        if not memory or memory % ALIGNMENT or size < self._engine.device_memory_size_v2:
            raise Misuse(f"scratch memory of {size} bytes at {memory:#x}")
        self._scratch = memory, size

    @_noted
    def execute_async_v3(self, stream_handle: int) -> bool:
        self._enter()
        try:
            return self._execute(stream_handle)
        finally:
            self._thread = None

    def _execute(self, stream: int) -> bool:
        card = self._machine.card
        if stream != card.stream() or not card.is_current():
            raise Misuse(f"launched on stream {stream}, the current one is {card.stream()}")
        if card.recording is not None:
            return self._record(card.recording)
        if self._stream not in (None, stream) and not card.is_capturing():
            raise Misuse(f"a context of stream {self._stream} is used on stream {stream}")
        self._stream = stream
        if self._spec.refuses("launch"):
            self._engine._runtime._logger.log(real.ILogger.Severity.ERROR, "launch failed")
            return False
        self._ran = dict(self._shapes)
        return self._compute(self._addresses, self._scratch, stream)

    def _record(self, graph: Graph) -> bool:
        """Have a graph do what a launch would do now, with these addresses."""
        if self._ran != self._shapes:
            raise Misuse("a graph is recorded before a launch with the same shapes")
        if any(-1 in shape for shape in self._output_shapes().values()):
            raise CaptureError("the host waits for a shape while a graph is recorded")
        if self._spec.refuses("record"):
            self._engine._runtime._logger.log(real.ILogger.Severity.ERROR, "cannot be captured")
            return False
        myself, version = weakref.ref(self), self._version
        addresses, scratch, spec = dict(self._addresses), self._scratch, self._spec

        def replay(stream: int) -> None:
            context = myself()
            if context is None:
                raise Misuse("a graph is replayed whose context is gone")
            if context._version != version:
                # NVIDIA: what a context keeps on the card changes with its shapes, so that a graph
                # of other shapes must be recorded again; the best is a context for each graph.
                raise Misuse("a graph is replayed whose context was given other shapes")
            context._compute(addresses, scratch, stream)
            context._machine.replays.append((spec, stream))

        graph.add(replay)
        return True

    def _compute(self, addresses: dict[str, int], scratch: tuple[int, int], stream: int) -> bool:
        machine = self._machine
        if not self._engine.weights_loaded:
            raise Misuse("launched without weights")
        assert self._engine._blob is not None
        if not bool((self._engine._blob == PATTERN).all()):
            raise Misuse("launched with other weights than the plan's")
        self._touch_scratch(scratch, stream)
        inputs = [
            self._at(addresses, name, kind, self._shapes[name], stream)
            for name, (kind, _) in self._spec.inputs.items()
        ]
        shapes = self._output_shapes()
        places: dict[str, torch.Tensor] = {}
        for name, kind in self._spec.outputs.items():
            alias = self._spec.aliases.get(name)
            if alias is not None and addresses[name] != addresses[alias]:
                raise Misuse(f"{name} does not lie in the memory of {alias}")
            if -1 not in shapes[name]:
                places[name] = self._at(addresses, name, kind, shapes[name], stream)
        for name, value in zip(self._spec.outputs, self._spec.compute(inputs), strict=True):
            if name in places:
                if value.shape != places[name].shape:
                    raise Misuse(f"the stand-in's {name} has the shape {list(value.shape)}")
                places[name].copy_(value)
            elif not self._give(name, value, stream):
                return False
        self._engine._in_flight.add(stream)
        machine.launches.append((self._spec, stream))
        return True

    def _touch_scratch(self, scratch: tuple[int, int], stream: int) -> None:
        need = self._engine.device_memory_size_v2
        if not self._managed or not need:
            return
        address, size = scratch
        block = self._machine.memory.block_at(address)
        if block is None or block.size < size:
            raise Misuse("launched without scratch memory, or with what was freed")
        if block.stream != stream:
            raise Misuse(f"scratch memory of stream {block.stream} is used on stream {stream}")
        _view(address, size)[:] = 0x5A

    def _at(
        self,
        addresses: dict[str, int],
        name: str,
        kind: torch.dtype,
        shape: tuple[int, ...],
        stream: int,
    ) -> torch.Tensor:
        if name not in addresses:
            raise Misuse(f"launched without an address for {name}")
        address, size = addresses[name], math.prod(shape) * kind.itemsize
        block = self._machine.memory.block_at(address)
        if block is None or block.address + block.size - address < size:
            raise Misuse(f"{name} lies in memory that was freed, or is too small")
        if not self._machine.card.is_capturing():
            block.used.add(stream)
        if not size:
            return torch.empty(shape, dtype=kind)
        return torch.from_numpy(_view(address, size)).view(kind).view(shape)

    def _give(self, name: str, value: torch.Tensor, stream: int) -> bool:
        allocator = self._allocators[name]
        size = value.numel() * value.element_size()
        bound = 2 * size  # what is asked for may be more than what is needed
        address = allocator.reallocate_output_async(name, 0, bound, ALIGNMENT, stream)
        if not isinstance(address, int):
            raise TypeError("the real binding takes only an int")
        if not address:
            return False
        if size:
            _view(address, size)[:] = value.contiguous().view(-1).view(torch.uint8).numpy()
        allocator.notify_shape(name, real.Dims(tuple(value.shape)))
        return True


def _view(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Machine:
    """A machine with a card: its memory, its TensorRT, the plans on its disk.

    Attributes:
        calls: of the library, in order: class, method, and arguments that are no objects.
        launches: what ran, and on which stream.
        replays: what of it a recorded graph launched.
        compiled: kernels that no cache had.
        cache_adds: whether filling a runtime cache twice adds to it.
        engines, contexts: those that are alive.
    """

    def __init__(self, folder: Path, *, full: bool = False) -> None:
        self.folder = folder
        self.memory = Memory()
        self.card = HostCard(self.memory)
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.launches: list[tuple[Spec, int]] = []
        self.replays: list[tuple[Spec, int]] = []
        self.compiled, self.cache_adds = 0, True
        self.engines: weakref.WeakSet[ICudaEngine] = weakref.WeakSet()
        self.contexts: weakref.WeakSet[IExecutionContext] = weakref.WeakSet()
        self.config_class = FullRuntimeConfig if full else IRuntimeConfig
        self._specs: list[Spec] = []
        self.library = types.ModuleType("tensorrt" if full else "tensorrt_rtx")
        vars(self.library).update(
            {name: getattr(real, name) for name in (FULL_ENUMS if full else ENUMS)},
            __version__=real.__version__,
            ILogger=real.ILogger,
            IOutputAllocator=real.IOutputAllocator,
            Runtime=functools.partial(FullRuntime if full else Runtime, self),
        )

    def plan(self, spec: Spec) -> Path:
        """Write a plan to disk."""
        self._specs.append(spec)
        path = self.folder / f"{len(self._specs)}" / "engine.plan"
        path.parent.mkdir()
        path.write_bytes(f"{len(self._specs) - 1}".encode().ljust(HEADER) + bytes(4096))
        return path

    def refuse_in_recordings(self, what: str) -> None:
        """Fail where CUDA allocates or frees memory, which it does not do while it records."""
        if self.card.is_capturing():
            raise Misuse(f"{what} while a graph is recorded")

    def spec(self, content: memoryview) -> Spec:
        return self._specs[int(bytes(content[:HEADER]))]

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        """Return a copy in the card's memory, of the current stream."""
        strides = torch.empty(value.shape).stride()
        return self.card.empty(value.shape, strides, dtype=value.dtype).copy_(value)

    def check(self) -> None:
        """Fail for what was found wrong when nobody could be told."""
        assert not self.memory.violations, self.memory.violations


#: What full TensorRT has of them.
FULL_ENUMS = ("DataType", "ExecutionContextAllocationStrategy", "TensorLocation")

ENUMS = (
    *FULL_ENUMS,
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
)

CLASSES = (
    Runtime,
    ICudaEngine,
    IWeightsManager,
    IExecutionContext,
    IRuntimeConfig,
    IRuntimeCache,
)
