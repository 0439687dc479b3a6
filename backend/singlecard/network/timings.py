"""The timing cache of a build: filled with what was measured before, read when the build is done.

What it holds only saves time. Timings that the installed TensorRT or the card at hand does not take
are passed over, and replaced by those of this build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from singlecard.network.flavour import trt


class TimingStore(Protocol):
    """Where timings are kept between builds."""

    def load(self) -> bytes:
        """Return a serialized ``ITimingCache``, or nothing."""

    def save(self, own: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        """Keep one, beside what others kept; ``merge`` makes one of what is there and ``own``."""


class Timings:
    """The timing cache of one builder configuration. It must live until the build is done."""

    def __init__(self, config: trt.IBuilderConfig, store: TimingStore) -> None:
        self._config, self._store = config, store
        self._loaded = store.load()
        self._cache = self._attach(self._loaded) if self._loaded else None
        if self._cache is None:
            self._cache = self._attach(b"")

    def save(self) -> None:
        """Keep what is known now, if it is more than was loaded."""
        own = _content(self._config.get_timing_cache())
        if own and own != self._loaded:
            self._store.save(own, self._merged)

    def _attach(self, content: bytes) -> trt.ITimingCache | None:
        """Give the configuration a timing cache; None where TensorRT does not take it.

        That of another model of card is refused (``ignore_mismatch`` is false): its timings would
        choose kernels that are slow here.
        """
        cache = self._config.create_timing_cache(content)
        if cache is None or not self._config.set_timing_cache(cache, False):
            return None
        return cache

    def _merged(self, present: bytes, own: bytes) -> bytes:
        """Return two caches in one; what both know stays as it was first measured."""
        both = self._config.create_timing_cache(present)
        added = self._config.create_timing_cache(own)
        if both is None or added is None or not both.combine(added, False):
            return own  # the other is of another card or TensorRT: of no use here
        return _content(both) or own


def _content(cache: trt.ITimingCache | None) -> bytes:
    serialized = None if cache is None else cache.serialize()
    return b"" if serialized is None else bytes(serialized)
