"""Builders and runtimes of TensorRT are made and ended one at a time.

TensorRT makes and ends one under a lock of its own, and tells its logger so meanwhile, which is
Python: that thread may wait for Python's lock, and another one that has it, and ends a builder, for
TensorRT's. Neither goes on. Measured with tensorrt_rtx 1.7.1: two threads that make and drop
networks stop within a second. Two that build, or one that builds and one that makes and drops under
the lock here, go on.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from singlecard.collection import collection_paused

_one_at_a_time = threading.Lock()
_waiting: collections.deque[Any] = collections.deque()


@contextlib.contextmanager
def making() -> Iterator[None]:
    """Make a builder or a runtime within."""
    try:
        with _one_at_a_time, collection_paused():
            yield
    finally:
        _end_waiting()


def end(held: object) -> None:
    """Drop what holds a builder: now, or as soon as the one that is being made is there.

    It waits for no lock, and may be called wherever an object can go.
    """
    _waiting.append(held)
    del held
    _end_waiting()


def _end_waiting() -> None:
    while _waiting and _one_at_a_time.acquire(blocking=False):
        try:
            with contextlib.suppress(IndexError):
                _waiting.popleft()  # and with it goes what it holds
        finally:
            _one_at_a_time.release()
