"""Counters of this process: what the cache had, what was built, what went over the network."""

from __future__ import annotations

import dataclasses
import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """What happened in this process since it started, or since the counters were reset.

    Two snapshots can be subtracted: ``after - before`` is what happened between them.

    Attributes:
        hits: engines that the cache had.
        misses: engines that it did not have, or had damaged.
        waits: hits that another process or thread built while this one waited for it.
        damaged: entries that were set aside because they were not what was written.
        evicted: entries that were removed to keep the cache within its limit.
        evicted_bytes: what those held.
        builds: engines that were built.
        build_seconds: time that TensorRT took for them, all together.
        background_builds: how many of them were built behind running calls.
        build_failures: networks that TensorRT refused to build.
        engine_calls: parts of a model that an engine answered.
        evaluations: networks that the reference evaluated instead of an engine.
        fallback_calls: those that PyTorch answered in its place: the call was out of the engine's
            range, or something failed.
        bytes_read: size of the plans that were found.
        bytes_written: size of the plans that were stored.
        remote_hits: engines fetched from the shared cache.
        remote_misses: engines that it did not have.
        remote_uploads: engines sent to it.
        remote_failures: times that it could not be used, or gave something that was refused.
        remote_bytes_read: size of what was fetched.
        remote_bytes_written: size of what was sent.
    """

    hits: int = 0
    misses: int = 0
    waits: int = 0
    damaged: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    builds: int = 0
    build_seconds: float = 0.0
    background_builds: int = 0
    build_failures: int = 0
    engine_calls: int = 0
    evaluations: int = 0
    fallback_calls: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    remote_hits: int = 0
    remote_misses: int = 0
    remote_uploads: int = 0
    remote_failures: int = 0
    remote_bytes_read: int = 0
    remote_bytes_written: int = 0

    def __sub__(self, earlier: Counters) -> Counters:
        if not isinstance(earlier, Counters):
            return NotImplemented
        own, others = self.to_dict(), earlier.to_dict()
        return Counters(**{name: own[name] - others[name] for name in own})  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, int | float]:
        """Return plain values by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __str__(self) -> str:
        """Return what is not zero, a line each."""
        shown = {name: value for name, value in self.to_dict().items() if value}
        if not shown:
            return "nothing counted"
        width = max(map(len, shown))
        return "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in shown.items())


def _text(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


class _State:
    """The running counts. A forked child starts with its parent's, and a lock of its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts = Counters().to_dict()

    def renew_lock(self) -> None:
        self.lock = threading.Lock()


_state = _State()
os.register_at_fork(after_in_child=_state.renew_lock)


def counters(*, reset: bool = False) -> Counters:
    """Return what happened in this process so far, as a snapshot that does not change.

    Args:
        reset: start again from zero behind it; what other threads count meanwhile is in one of the
            two snapshots, and never in both.

    Example:
        >>> import singlecard
        >>> before = singlecard.counters()
        >>> (singlecard.counters() - before).hits
        0
    """
    with _state.lock:
        snapshot = Counters(**_state.counts)  # type: ignore[arg-type]
        if reset:
            _state.counts = Counters().to_dict()
    return snapshot


def count(**amounts: int | float) -> None:
    """Add to counters, by name."""
    with _state.lock:
        for name, amount in amounts.items():
            _state.counts[name] += amount


def count_one(name: str) -> None:
    """Add one to a counter, in a small part of a microsecond: each call of an engine does it."""
    with _state.lock:
        _state.counts[name] += 1
