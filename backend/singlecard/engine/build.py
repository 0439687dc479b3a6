"""From a lowered network to an engine in the cache."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from singlecard.engine.cache import PLAN, Cache, Entry
from singlecard.engine.plan_report import PlanReport, read_plan_log
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings, Progress, build_plan
from singlecard.network.digest import network_digest
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.network.inspect import view_network


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        digest: of all that the plan was built from.
        plan: the file that holds the plan.
        report: what the builder said of the plan.
        built: whether it was built just now; False where the cache had it.
        seconds: time that building took, or 0.
    """

    digest: str
    plan: Path
    report: PlanReport
    built: bool
    seconds: float


def key_parts(lowered: Lowered, settings: BuildSettings) -> dict[str, str]:
    """Return the named parts of an engine's key: the network itself, and all else that decides."""
    profiles = {
        name: (span.smallest, span.usual, span.largest)
        for name, span in sorted(lowered.profiles.items())
    }
    return {
        "network": network_digest(view_network(lowered.net.definition)),
        "profiles": repr(profiles),
        "flavour": flavour_name(),
        "version": flavour_version(),
        **settings.parts(),
    }


def key_digest(parts: Mapping[str, str]) -> str:
    """Return the digest of a key's parts as 64 hexadecimal digits."""
    return blake3.blake3(repr(sorted(parts.items())).encode()).hexdigest()


def get_engine(
    lowered: Lowered,
    settings: BuildSettings,
    cache: Cache,
    progress: Progress | None = None,
    parts: Mapping[str, str] | None = None,
) -> Engine:
    """Return the engine of a network, from the cache where it is there, built otherwise.

    Raises:
        BuildError: TensorRT refused to build it.
        CacheError: the cache cannot be read or written.
    """
    parts = parts or key_parts(lowered, settings)
    digest = key_digest(parts)
    found = cache.find(digest)
    if found is None:
        with cache.lock(digest):
            found = cache.find(digest)  # another process may have built it meanwhile
            if found is None:
                return _build(lowered, settings, cache, progress, parts, digest)
    return _engine(found, False)


class _Counting(io.RawIOBase):
    """A file that keeps nothing but its length."""

    length = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size


def trial_report(lowered: Lowered, settings: BuildSettings) -> PlanReport:
    """Build a network, and keep what the builder says of the plan instead of the plan.

    Raises:
        BuildError: TensorRT refused to build it.
    """
    file = _Counting()
    messages = build_plan(lowered.net, lowered.profiles, settings, file)  # type: ignore[arg-type]
    return read_plan_log(messages, engine_bytes=file.length)


def _build(
    lowered: Lowered,
    settings: BuildSettings,
    cache: Cache,
    progress: Progress | None,
    parts: Mapping[str, str],
    digest: str,
) -> Engine:
    def write(folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        with (folder / PLAN).open("wb") as file:
            messages = build_plan(lowered.net, lowered.profiles, settings, file, progress)
        seconds = time.perf_counter() - started
        report = read_plan_log(messages, engine_bytes=(folder / PLAN).stat().st_size)
        return {"key": dict(parts), "build_seconds": seconds, "report": report.to_dict()}

    return _engine(cache.store(digest, write), True)


def _engine(entry: Entry, built: bool) -> Engine:
    report = PlanReport.from_dict(entry.manifest["report"])
    seconds = float(entry.manifest["build_seconds"]) if built else 0.0
    return Engine(entry.digest, entry.plan, report, built, seconds)
