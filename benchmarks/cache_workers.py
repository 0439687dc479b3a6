"""What the processes of `cache_faults` do: they build, load, damage and remove engines.

A plan's content follows from its digest, so that whoever loads one knows whether it is right.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from singlecard.engine.cache import PLAN, Cache, Entry
from singlecard.engine.memory import recall, remember

#: What a process is just doing, as the number that it leaves for whoever kills it.
PHASES = (
    "starting",
    "looking for an engine",
    "waiting for a lock, or taking it",
    "writing a plan",
    "sealing and naming it, making room",
    "loading an engine",
    "setting a damaged one aside",
    "pruning",
    "clearing",
    "remembering",
)


def digests(count: int, seed: int) -> list[str]:
    """Return digests, the same ones for the same seed."""
    return [blake3.blake3(f"{seed} {index}".encode()).hexdigest() for index in range(count)]


def plan_of(digest: str) -> bytes:
    """Return the one right content of an engine: 64 to 319 KiB."""
    size = (64 + int(digest[:2], 16)) * 1024
    return blake3.blake3(digest.encode()).digest(length=size)


def is_right(entry: Entry) -> bool:
    """Tell whether what would be loaded is what was built."""
    with entry.hold() as held:
        return bytes(held.map()) == plan_of(entry.digest)


class Told(mmap.mmap):
    """One byte that parent and child share: the phase that the child is in."""

    def __new__(cls) -> Told:
        return super().__new__(cls, -1, 1)

    def tell(self, phase: str) -> None:
        self[0] = PHASES.index(phase)

    def phase(self) -> str:
        return PHASES[self[0]]


@dataclass
class Log:
    """Starts and ends of builds, as lines that processes append to one file."""

    path: Path

    def add(self, event: str, digest: str) -> None:
        line = f"{digest} {event} {time.monotonic_ns()} {os.getpid()}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def builds(self) -> dict[str, int]:
        """Return how often each engine was built."""
        counts: dict[str, int] = {}
        for digest, event, _, _ in self._lines():
            counts[digest] = counts.get(digest, 0) + (event == "start")
        return counts

    def overlaps(self) -> int:
        """Return how many builds began while another of the same engine was under way."""
        open_builds: dict[str, set[str]] = {}
        count = 0
        for digest, event, _, process in sorted(self._lines(), key=lambda line: int(line[2])):
            under_way = open_builds.setdefault(digest, set())
            if event == "start":
                count += bool(under_way)
                under_way.add(process)
            else:
                under_way.discard(process)
        return count

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()]


def get(
    cache: Cache,
    digest: str,
    pause: float,
    log: Log | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Entry:
    """Return an engine as a compilation does: find it, else lock, find again, build slowly."""
    tell("looking for an engine")
    found = cache.find(digest)
    if found is not None:
        return found
    tell("waiting for a lock, or taking it")
    with cache.lock(digest):
        found = cache.find(digest)
        if found is None:
            if log:
                log.add("start", digest)
            found = cache.store(digest, lambda folder: _write(folder, digest, pause, tell))
            if log:
                log.add("end", digest)
    return found


def _write(folder: Path, digest: str, pause: float, tell: Callable[[str], None]) -> dict[str, Any]:
    tell("writing a plan")
    content = plan_of(digest)
    piece = len(content) // 8
    with (folder / PLAN).open("wb") as file:
        for start in range(0, len(content), piece):
            file.write(content[start : start + piece])
            file.flush()
            time.sleep(pause / 8)
    tell("sealing and naming it, making room")
    return {"key": {"digest": digest}, "build_seconds": pause, "report": {}}


def live(folder: Path, names: list[str], seed: int, told: Told, until: float) -> int:
    """Use a cache in every way there is until a time; return how many wrong plans were loaded."""
    rng, wrong = random.Random(seed), 0
    cache = Cache(folder, limit_bytes=sum(len(plan_of(name)) for name in names) // 2)
    while time.monotonic() < until:
        digest, chance = rng.choice(names), rng.random()
        if chance < 0.75:
            entry = get(cache, digest, rng.uniform(0, 0.02), tell=told.tell)
            told.tell("loading an engine")
            wrong += not is_right(entry)
        elif chance < 0.85:
            told.tell("setting a damaged one aside")
            damage_in_passing(cache.path(digest) / PLAN, rng)
            entry_or_none = cache.find(digest)
            wrong += entry_or_none is not None and not is_right(entry_or_none)
        elif chance < 0.92:
            told.tell("pruning")
            cache.prune(rng.randrange(10**6))
        elif chance < 0.95:
            told.tell("clearing")
            cache.clear()
        else:
            told.tell("remembering")
            remember(cache, digest, digest)
            wrong += recall(cache, digest) not in (digest, None)
    return wrong


def damage_in_passing(plan: Path, rng: random.Random) -> None:
    """Replace a plan by one with another bit: whoever has the old one open keeps it."""
    try:
        content = bytearray(plan.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        other = plan.with_name(f"{os.getpid()}.tmp")
        other.write_bytes(content)
        os.replace(other, plan)
    except (OSError, ValueError):
        pass  # it was removed meanwhile
