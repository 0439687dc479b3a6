"""A card and a TensorRT that do nothing: what is left of a call is what Python does for it.

TensorRT's builder and networks are the real ones. Of its runtime there are the members that a call
uses, as methods of Python that return at once. CUDA is functions that return at once, and memory
is the host's.
"""

from __future__ import annotations

import contextlib
import functools
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import tensorrt_rtx as real
import torch

from singlecard import session
from singlecard.artifact import loading
from singlecard.network import executing, flavour
from singlecard.network.card import Card
from singlecard.network.contexts import ALIGNMENT
from singlecard.runtime import engine

TARGET = "sm89"

#: Networks by the bytes of their plans: their outputs' shapes and all types.
_NETWORKS: dict[bytes, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {}


class Context:
    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes, self._dynamic = shapes, ()

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self._dynamic = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        shape = self._shapes[name]
        return self._dynamic if -1 in shape else shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        return None

    def execute_async_v3(self, stream_handle: int) -> bool:
        return True


class Config:
    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        return None


class Engine:
    device_memory_size_v2 = 1 << 20
    streamable_weights_size = 0

    def __init__(self, plan: bytes) -> None:
        self._types, self._shapes = _NETWORKS[plan]

    def get_tensor_dtype(self, name: str) -> Any:
        return self._types[name]

    def create_runtime_config(self) -> Config:
        return Config()

    def create_execution_context(self, runtime_config: Config) -> Context:
        return Context(self._shapes)


class Runtime:
    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: memoryview) -> Engine:
        return Engine(bytes(serialized_engine))


class HostCard(Card):
    """Asks PyTorch what a card would be asked, and gets host memory."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.stream = functools.partial(int, 0)
        self.empty = functools.partial(torch.empty_strided, device=self.device)

    def is_current(self) -> bool:
        return bool(torch.cuda.current_device() == 0)

    def entered(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    @property
    def memory(self) -> int:
        return 1 << 34

    @property
    def name(self) -> str:
        return "none"

    @property
    def driver(self) -> int:
        return 0


@contextlib.contextmanager
def nothing_done() -> Iterator[None]:
    """Have engines run on a card and by a TensorRT that do nothing."""
    library = types.ModuleType(real.__name__)
    library.__dict__.update(vars(real) | {"Runtime": Runtime})
    card = HostCard()
    build = session.get_engine

    def noted(lowered: Any, *args: Any) -> Any:
        built = build(lowered, *args)
        network = lowered.net.definition
        outputs = [network.get_output(at) for at in range(network.num_outputs)]
        inputs = [network.get_input(at) for at in range(network.num_inputs)]
        _NETWORKS[built.plan.read_bytes()] = (
            {item.name: item.dtype for item in (*inputs, *outputs)},
            {item.name: tuple(item.shape) for item in outputs},
        )
        return built

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (flavour, "tensorrt", lambda: library),
            (session, "get_engine", noted),
            (executing, "card_of", lambda device: card),
            (engine, "card_of", lambda device: card),
            (loading, "card_refusal", lambda tensors: None),
            (loading, "target_of", lambda device: TARGET),
            (torch.cuda, "_initialized", True),
            (torch._C, "_cuda_getDevice", int),
            (torch.cuda.graphs, "_cuda_isCurrentStreamCapturing", int),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield


def aligned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return zeros in host memory that begin where CUDA's allocations do."""
    size = math.prod(shape) * dtype.itemsize
    whole = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    return torch.from_numpy(whole[start : start + size]).view(dtype).view(tuple(shape))


class Taps:
    """Notes on what methods were called last, and with what."""

    def __init__(self, methods: Sequence[tuple[type, str]]) -> None:
        self._methods = methods
        self.calls: dict[str, Callable[[], Any]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Take notes for a while."""
        with contextlib.ExitStack() as stack:
            for owner, name in self._methods:
                stack.enter_context(mock.patch.object(owner, name, self._noting(owner, name)))
            yield

    def _noting(self, owner: type, name: str) -> Callable[..., Any]:
        method = getattr(owner, name)

        def noting(caller: Any, *args: Any) -> Any:
            given = functools.partial(method, caller)
            kept = [list(arg) if isinstance(arg, list) else arg for arg in args]
            self.calls[owner.__name__] = functools.partial(given, *kept)
            return method(caller, *args)

        return noting
