"""Stands in for the timing cache of full TensorRT, which exists only where a builder has a card.

A cache is of one card and one version, and maps kernels to times. Where TensorRT returns a null
pointer its bindings give None.
"""

from __future__ import annotations

from collections.abc import Mapping


class ITimingCache:
    def __init__(self, card: str, version: str, times: Mapping[str, int]) -> None:
        self._card, self._version, self._times = card, version, dict(times)

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if input_cache._version != self._version:
            return False
        if input_cache._card != self._card and not ignore_mismatch:
            return False
        self._times = {**input_cache._times, **self._times}  # what is known already stays
        return True

    def serialize(self) -> memoryview:
        times = ",".join(f"{name}={time}" for name, time in sorted(self._times.items()))
        return memoryview(f"{self._card}|{self._version}|{times}".encode())


class IBuilderConfig:
    """A configuration on one card; `measure` is what a build does with it."""

    def __init__(self, card: str = "l4", version: str = "10.13") -> None:
        self._card, self._version = card, version
        self._used: ITimingCache | None = None

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache(self._card, self._version, {})
        try:
            card, version, times = bytes(serialized_timing_cache).decode().split("|")
            pairs = (item.split("=") for item in times.split(",") if item)
            return ITimingCache(card, version, {name: int(time) for name, time in pairs})
        except ValueError:
            return None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        same = (cache._card, cache._version) == (self._card, self._version)
        if same or ignore_mismatch:
            self._used = cache
        return same or ignore_mismatch

    def get_timing_cache(self) -> ITimingCache | None:
        return self._used

    def measure(self, *kernels: str, time: int = 1) -> list[str]:
        """Time those kernels that the cache does not know; return which these are."""
        assert self._used is not None
        new = [name for name in kernels if name not in self._used._times]
        self._used._times.update(dict.fromkeys(new, time))
        return new


def times_in(content: bytes) -> dict[str, int]:
    """Return what a serialized cache knows."""
    cache = IBuilderConfig().create_timing_cache(content)
    return {} if cache is None else cache._times
