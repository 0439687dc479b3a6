"""What can happen to an engine: each event is counted, and told in one line of its topic's log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from singlecard.observe.counters import count
from singlecard.observe.topics import topic

#: Digits of a digest in a line: as many as tables show.
SHOWN_DIGITS = 12


def record_hit(digest: str, size: int, waited: float | None = None) -> None:
    """The cache has an engine.

    Args:
        digest: its digest.
        size: bytes of its plan.
        waited: seconds until somebody else had built it; None where it was there at once.
    """
    how = "" if waited is None else f", built elsewhere while this waited {waited:.1f} s"
    count(hits=1, bytes_read=size, waits=waited is not None)
    topic("cache").info("hit %s: %s%s", _short(digest), size_text(size), how)


def record_miss(digest: str, reason_of: Callable[[], str]) -> None:
    """The cache does not have an engine; its reason is worked out only where somebody reads it."""
    count(misses=1)
    log = topic("cache")
    if log.isEnabledFor(logging.INFO):
        log.info("miss %s: %s", _short(digest), reason_of())


def record_build_start(digest: str) -> None:
    """The builder is given a network, for a time that may be long."""
    topic("build").debug("building %s", _short(digest))


def record_build(digest: str, seconds: float, size: int, kernels: int | None) -> None:
    """An engine was built and stored; ``kernels`` is None where their number is not known."""
    count(builds=1, build_seconds=seconds, bytes_written=size)
    text = "built %s in %.1f s: %s kernel%s, %s"
    number, plural = "unknown" if kernels is None else kernels, "" if kernels == 1 else "s"
    topic("build").info(text, _short(digest), seconds, number, plural, size_text(size))


def record_build_failure(digest: str, reason: str) -> None:
    """TensorRT refused to build a network. Whoever asked for it is told by an exception."""
    count(build_failures=1)
    topic("build").info("not built %s: %s", _short(digest), reason)


def record_background_build(digest: str) -> None:
    """An engine that was built behind running calls is ready; `record_build` told the rest."""
    count(background_builds=1)
    topic("build").info("ready %s: the next call runs it", _short(digest))


def record_damaged(digest: str, reason: str) -> None:
    """An entry was not what had been written, and was set aside."""
    count(damaged=1)
    text = "damaged %s: %s. It was set aside and is built again"
    topic("cache").warning(text, _short(digest), reason)


def record_evicted(digest: str, size: int) -> None:
    """An entry was removed to keep the cache within its limit."""
    count(evicted=1, evicted_bytes=size)
    topic("cache").info("evicted %s: %s", _short(digest), size_text(size))


def record_remote_hit(digest: str, size: int, seconds: float) -> None:
    """An engine was fetched from the shared cache, and found whole."""
    count(remote_hits=1, remote_bytes_read=size)
    text = "fetched %s: %s in %.1f s"
    topic("remote").info(text, _short(digest), size_text(size), seconds)


def record_remote_miss(digest: str) -> None:
    """The shared cache does not have an engine."""
    count(remote_misses=1)
    topic("remote").info("not there %s", _short(digest))


def record_remote_upload(digest: str, size: int, seconds: float) -> None:
    """An engine was sent to the shared cache."""
    count(remote_uploads=1, remote_bytes_written=size)
    text = "sent %s: %s in %.1f s"
    topic("remote").info(text, _short(digest), size_text(size), seconds)


def record_remote_failure(digest: str, reason: str) -> None:
    """The shared cache could not be used, or gave something that was refused: work goes on."""
    count(remote_failures=1)
    topic("remote").warning("failed %s: %s", _short(digest), reason)


def size_text(size: int) -> str:
    """Return a size in powers of 1000.

    >>> size_text(64_074_324)
    '64.1 MB'
    """
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def _short(digest: str) -> str:
    return digest[:SHOWN_DIGITS]
