"""How engines are run, and which features of the installed TensorRT that asks for.

TensorRT for RTX has more of them than full TensorRT. What the installed one lacks is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from singlecard.network.flavour import trt
from singlecard.options import Specialization


@dataclass(frozen=True)
class RuntimeSettings:
    """How an engine is run. None of it changes what the engine is, or its key.

    Attributes:
        cuda_graphs: record the kernels of a call once, and launch them as one. TensorRT for RTX
            does so itself, for full TensorRT PyTorch does it.
        specialization: when TensorRT for RTX compiles kernels for the shapes of a call.
        weight_budget: bytes of streamable weights that stay on the card; the others are copied
            there at each call. None keeps all there. An engine without streamable weights, which
            was not built with weight streaming, does not look at it.
        memory_budget: bytes that the weights of all engines of the process may take on the card
            together; engines take turns where they would take more. None: no limit.
        shared_scratch: one block of scratch memory for all engines on a stream, instead of one for
            each engine.
        keep_kernels: keep the kernels that were compiled on this card for the next process.
    """

    cuda_graphs: bool = False
    specialization: Specialization = "lazy"
    weight_budget: int | None = None
    memory_budget: int | None = None
    shared_scratch: bool = True
    keep_kernels: bool = True


class KernelStore(Protocol):
    """Where kernels that were compiled on the card are kept between processes."""

    def load(self, cache: Any) -> None:
        """Fill an empty ``IRuntimeCache``."""

    def save(self, cache: Any, new_cache: Callable[[], Any]) -> None:
        """Keep what is in one, beside what other processes kept; ``new_cache`` gives empty ones."""


class Kernels:
    """The runtime cache that all contexts of one engine share."""

    def __init__(self, store: KernelStore) -> None:
        self._store, self._cache = store, None
        self._new: Callable[[], Any] | None = None

    def attach(self, config: Any) -> None:
        """Give the cache to a runtime configuration; the first one makes it."""
        if self._cache is None:
            self._new = config.create_runtime_cache
            self._cache = config.create_runtime_cache()
            if self._cache is None:
                return
            self._store.load(self._cache)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep what was compiled until now."""
        if self._cache is not None and self._new is not None:
            self._store.save(self._cache, self._new)


def new_context(
    engine: trt.ICudaEngine, settings: RuntimeSettings, own_scratch: bool, kernels: Kernels | None
) -> tuple[trt.IExecutionContext | None, Any]:
    """Return an execution context, and what must live as long as it; None where there is none.

    Args:
        engine: the engine.
        settings: how it is run.
        own_scratch: whether the context allocates its scratch memory itself.
        kernels: the engine's runtime cache.
    """
    kind = "STATIC" if own_scratch else "USER_MANAGED"
    strategy = getattr(trt.ExecutionContextAllocationStrategy, kind)
    config: Any = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    if hasattr(config, "cuda_graph_strategy"):
        graphs: Any = getattr(trt, "CudaGraphStrategy")  # noqa: B009
        recorded = graphs.WHOLE_GRAPH_CAPTURE if settings.cuda_graphs else graphs.DISABLED
        config.cuda_graph_strategy = recorded
    if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
        kinds: Any = getattr(trt, "DynamicShapesKernelSpecializationStrategy")  # noqa: B009
        chosen = getattr(kinds, settings.specialization.upper())
        config.dynamic_shapes_kernel_specialization_strategy = chosen
    if kernels is not None and hasattr(config, "create_runtime_cache"):
        kernels.attach(config)
    return engine.create_execution_context(config), (config, kernels)


def has_own_graphs() -> bool:
    """Tell whether the installed TensorRT records CUDA graphs itself."""
    return hasattr(trt, "CudaGraphStrategy")
