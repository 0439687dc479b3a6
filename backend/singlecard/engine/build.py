"""From a lowered network to an engine in the cache."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from singlecard.engine.cache import PLAN, Cache, Entry, Lookup
from singlecard.engine.nearest import miss_reason
from singlecard.engine.plan_report import PlanReport, read_plan_log, report_of_totals
from singlecard.engine.remote import RemoteTier
from singlecard.engine.timing_file import TimingFile, timing_file
from singlecard.engine.whole import missing_bytes
from singlecard.errors import BuildError, CacheError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings, Progress, build_plan
from singlecard.network.digest import network_parts
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.network.inspect import view_network
from singlecard.network.versions import lists_kernels, measures_kernels
from singlecard.observe import events


@dataclass(frozen=True)
class Engine:
    """A built engine.

    Attributes:
        digest: of all that the plan was built from.
        plan: the file that holds the plan.
        report: what the builder said of the plan.
        built: whether it was built just now; False where the cache had it.
        seconds: time that building took, or 0.
        entry: of the cache, which keeps the plan there for as long as this object lives.
    """

    digest: str
    plan: Path
    report: PlanReport
    built: bool
    seconds: float
    entry: Entry | None = field(default=None, repr=False, compare=False)


def key_parts(lowered: Lowered, settings: BuildSettings) -> dict[str, str]:
    """Return the named parts of an engine's key: the network itself, and all else that decides.

    Parts with a dot in their names, such as ``network.weights``, explain the one before the dot.
    They are kept with an engine and say what another key does not share; they decide nothing.
    """
    profiles = {
        name: (span.smallest, span.usual, span.largest)
        for name, span in sorted(lowered.profiles.items())
    }
    return {
        **network_parts(view_network(lowered.net.definition)),
        "profiles": repr(profiles),
        "flavour": flavour_name(),
        "version": flavour_version(),
        **settings.parts(),
    }


def key_digest(parts: Mapping[str, str]) -> str:
    """Return the digest of a key as 64 hexadecimal digits: of the parts that decide."""
    deciding = sorted(item for item in parts.items() if "." not in item[0])
    return blake3.blake3(repr(deciding).encode()).hexdigest()


def get_engine(
    lowered: Lowered,
    settings: BuildSettings,
    cache: Cache,
    progress: Progress | None = None,
    parts: Mapping[str, str] | None = None,
    remote: RemoteTier | None = None,
) -> Engine:
    """Return the engine of a network: of the cache, else of the remote, else built and sent there.

    Raises:
        BuildError: TensorRT refused to build it.
        CacheError: the cache cannot be read or written.
    """
    parts = parts or key_parts(lowered, settings)
    digest = key_digest(parts)
    first = _look(digest, cache, remote)
    if first.entry is not None:
        events.record_hit(digest, first.entry.size)
        return _engine(first.entry, False)
    started = time.perf_counter()
    with cache.lock(digest):
        found = _look(digest, cache, remote).entry  # another process may have built it meanwhile
        if found is not None:
            events.record_hit(digest, found.size, time.perf_counter() - started)
            return _engine(found, False)
        fetched = None if remote is None else remote.fetch(digest, cache)
        if fetched is not None:
            return _engine(fetched, False)
        _record_miss(parts, cache, digest, first.reason)
        engine = _build(lowered, settings, cache, progress, parts, digest)
    if remote is not None and engine.entry is not None:
        if not remote.check_local(engine.entry):
            raise CacheError(
                f"another process put an engine that may not be loaded into {engine.plan.parent} "
                "while it was built: run again"
            )
        remote.push(engine.entry)
    return engine


def find_engine(
    parts: Mapping[str, str], cache: Cache, remote: RemoteTier | None = None
) -> Engine | None:
    """Return the engine of a key if the cache or the remote has it; nothing is built.

    Raises:
        CacheError: the cache cannot be read.
    """
    digest = key_digest(parts)
    first = _look(digest, cache, remote)
    if first.entry is not None:
        events.record_hit(digest, first.entry.size)
        return _engine(first.entry, False)
    if remote is not None:
        with cache.lock(digest):
            found = _look(digest, cache, remote).entry or remote.fetch(digest, cache)
        if found is not None:
            return _engine(found, False)
    _record_miss(parts, cache, digest, first.reason)
    return None


def find_entry(digest: str, cache: Cache, remote: RemoteTier | None = None) -> Entry | None:
    """Return an entry of the cache that may be loaded; the remote only says which may.

    Raises:
        CacheError: the cache cannot be read.
    """
    return _look(digest, cache, remote).entry


def _look(digest: str, cache: Cache, remote: RemoteTier | None) -> Lookup:
    """Look for an engine in the cache, and say why it is not there if it was."""
    was_there = os.path.lexists(cache.path(digest))
    found = cache.look(digest)
    if found.entry is not None and remote is not None and not remote.check_local(found.entry):
        found = Lookup(None, "it came from a remote without the signing key that is set now")
        return dataclasses.replace(found, entry=remote.find_local(digest, cache))
    return found if was_there else dataclasses.replace(found, reason="")


def _record_miss(parts: Mapping[str, str], cache: Cache, digest: str, reason: str) -> None:
    """Record a miss; without a reason, as of a damaged entry, it is what the key does not share."""
    events.record_miss(digest, lambda: reason or miss_reason(parts, cache))


class _Counting(io.RawIOBase):
    """A file that keeps nothing but its length."""

    length = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size


def trial_report(
    lowered: Lowered, settings: BuildSettings, cache: Cache | None = None
) -> PlanReport:
    """Build a network, and keep what the builder says of the plan instead of the plan.

    Args:
        lowered: the network.
        settings: what else decides the plan.
        cache: where timings of kernels are kept, so that the engine is built faster after a trial.

    Raises:
        BuildError: TensorRT refused to build it.
    """
    file: Any = _Counting()
    timings = None if cache is None else _trial_timings(cache)
    messages = build_plan(lowered.net, lowered.profiles, settings, file, timings=timings)
    return _report(messages, file.length)


def _trial_timings(cache: Cache) -> TimingFile | None:
    if measures_kernels():
        with contextlib.suppress(OSError, CacheError):  # without a folder, they are measured again
            cache.open()
            return timing_file(cache.engines)
    return None


def _report(messages: Sequence[tuple[str, str]], engine_bytes: int) -> PlanReport:
    """Read what the builder says of a plan: nothing of it is a reason to lose the plan, except with
    TensorRT for RTX, where words that are new would be counted as nothing.
    """
    if lists_kernels():
        return read_plan_log(messages, engine_bytes)
    return report_of_totals(messages, engine_bytes)


def _build(
    lowered: Lowered,
    settings: BuildSettings,
    cache: Cache,
    progress: Progress | None,
    parts: Mapping[str, str],
    digest: str,
) -> Engine:
    def write(folder: Path) -> dict[str, Any]:
        events.record_build_start(digest)
        started = time.perf_counter()
        with (folder / PLAN).open("wb") as file:
            try:
                messages = build_plan(
                    lowered.net,
                    lowered.profiles,
                    settings,
                    file,
                    progress,
                    timing_file(folder.parent),
                )
            except BuildError as error:
                events.record_build_failure(digest, str(error))
                raise
        seconds = time.perf_counter() - started
        report = _report(messages, (folder / PLAN).stat().st_size)
        # Nobody has seen that what full TensorRT counts as weights lies in the plan as it is.
        weights = report.weights_bytes if lists_kernels() else None
        missing = missing_bytes(folder / PLAN, weights or 0)
        if missing:
            reason = (
                f"TensorRT left {missing} bytes or more out of the plan, for want of host memory: "
                "free some, and build again"
            )
            events.record_build_failure(digest, reason)
            raise BuildError(reason)
        return {"key": dict(parts), "build_seconds": seconds, "report": report.to_dict()}

    entry = cache.store(digest, write)
    engine = _engine(entry, True)
    events.record_build(digest, engine.seconds, entry.size, engine.report.kernel_count)
    return engine


def _engine(entry: Entry, built: bool) -> Engine:
    report = PlanReport.from_dict(entry.manifest["report"])
    seconds = float(entry.manifest["build_seconds"]) if built else 0.0
    return Engine(entry.digest, entry.plan, report, built, seconds, entry)
