"""What PyTorch does in Python before a table of decompositions is asked, and how to stop it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._decomp.decompositions import upsample_compute_output_size
from torch.utils._sympy.interp import handlers
from torch.utils._sympy.reference import TensorReferenceAnalysis

#: What PyTorch registers these under.
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)

#: The registrations belong to the process: one capture at a time may change them.
_changed = threading.RLock()


@contextmanager
def kept_whole(targets: Iterable[torch._ops.OpOverload]) -> Iterator[None]:
    """Keep some ops, such as interpolation, whole while tracing.

    Their decompositions in Python are hidden, so that the kernels in C++ leave one op for each
    call. An overload that takes scale factors, `.vec`, becomes the one that takes sizes: in C++
    that works for known sizes only.
    """
    with _changed:
        saved = {
            target: {key: target.py_kernels[key] for key in _KEYS if key in target.py_kernels}
            for target in targets
        }
        try:
            for target, kernels in saved.items():
                for key in kernels:
                    del target.py_kernels[key]
                    if target._overloadname == "vec":
                        target.py_kernels[key] = _sized(target)
                target._dispatch_cache.clear()
            yield
        finally:
            for target, kernels in saved.items():
                target.py_kernels.update(kernels)
                target._dispatch_cache.clear()


def _not_as_tensor(*_: Any) -> Any:
    raise NotImplementedError("PyTorch has no tensor op for this arithmetic of sizes")


@contextmanager
def numbers_left_alone() -> Iterator[None]:
    """Let AOTAutograd leave a number as it is where it cannot make a tensor of it.

    Floats that meet tensors become tensors there (`tensorify_python_scalars`). PyTorch 2.13 knows
    no tensor ops for some functions, such as Python's remainder, and instead of going on, as with
    those that it says so of, it fails: a ratio of sizes behind `height % window` is enough.
    """
    with _changed:
        missing = [
            name for name in set(handlers().values()) if not hasattr(TensorReferenceAnalysis, name)
        ]
        try:
            for name in missing:
                setattr(TensorReferenceAnalysis, name, staticmethod(_not_as_tensor))
            yield
        finally:
            for name in missing:
                delattr(TensorReferenceAnalysis, name)


@functools.cache
def _sized(target: torch._ops.OpOverload) -> Callable[..., Any]:
    def resize(input: torch.Tensor, output_size: Any, *rest: Any) -> torch.Tensor:
        *flags, scale_factors = rest
        size = upsample_compute_output_size(input.size(), output_size, scale_factors)
        scales: Sequence[float | None] = scale_factors or [None] * len(size)
        return target.overloadpacket.default(input, size, *flags, *scales)  # type: ignore[no-any-return]

    return resize
