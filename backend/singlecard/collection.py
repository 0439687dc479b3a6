"""When Python's garbage collector must not run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_paused = 0
_was_enabled = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Keep the collector from running, in all threads.

    It would walk a graph that is being built again and again: a tenth of the time from BERT-base to
    its network. And while TensorRT makes a builder or a runtime, it tells its logger what it does
    under a lock that the end of another builder wants too: one that is garbage must not end then.
    """
    global _paused, _was_enabled
    with _lock:
        if not _paused:
            _was_enabled = gc.isenabled()
            gc.disable()
        _paused += 1
    try:
        yield
    finally:
        with _lock:
            _paused -= 1
            if not _paused and _was_enabled:
                gc.enable()
