"""Ops that PyTorch takes apart in Python before any table of decompositions is asked."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch._C import DispatchKey

#: What PyTorch registers these under. The kernels in C++ behind them leave one op for each call.
_KEYS = (DispatchKey.CompositeImplicitAutograd, DispatchKey.Autograd)

#: The registrations belong to the process: one capture at a time may hide them.
_hidden = threading.RLock()


@contextmanager
def kept_whole(targets: Iterable[torch._ops.OpOverload]) -> Iterator[None]:
    """Hide the decompositions in Python of some ops, such as interpolation, while tracing."""
    with _hidden:
        saved = {
            target: {key: target.py_kernels[key] for key in _KEYS if key in target.py_kernels}
            for target in targets
        }
        try:
            for target, kernels in saved.items():
                for key in kernels:
                    del target.py_kernels[key]
                target._dispatch_cache.clear()
            yield
        finally:
            for target, kernels in saved.items():
                target.py_kernels.update(kernels)
                target._dispatch_cache.clear()
