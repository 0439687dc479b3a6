"""A process that dies between any two things that it does to the folder."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import PLAN, Cache
from singlecard.engine.memory import recall, remember
from tests.engine.stores import A, B, C, content_of, filled, flip, in_child, visible, writes

#: What Python reports before it changes something on the disk, or takes a lock.
EVENTS = {
    "open",
    "fcntl.flock",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.utime",
    "shutil.rmtree",
}

PLANS = {A: b"plan of a", B: b"plan of b, longer", C: b"plan of c"}


def build(cache: Cache) -> None:
    with cache.lock(C):
        cache.store(C, writes(PLANS[C]))


def replace_damaged(cache: Cache) -> None:
    flip(cache.path(A) / PLAN)
    assert cache.find(A) is None
    with cache.lock(A):
        cache.store(A, writes(PLANS[A]))


def build_within_limit(cache: Cache) -> None:
    cache.limit_bytes = 12
    build(cache)


SCENES: dict[str, Callable[[Cache], object]] = {
    "build": build,
    "build in a new folder": lambda cache: build(Cache(cache.folder / "new" / "folder")),
    "replace a damaged one": replace_damaged,
    "build within a limit": build_within_limit,
    "clear": Cache.clear,
    "remember": lambda cache: remember(cache, A, [1, 2, 3]),
}


def play_until(step: int, scene: Callable[[], object]) -> None:
    """Play a scene, and die just before its step of that number."""
    left = step

    def watch(event: str, _: Any) -> None:
        nonlocal left
        if event in EVENTS:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(watch)
    scene()


@pytest.mark.parametrize("name", SCENES)
def test_killed_at_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any crash: no wrong plan, nobody waits, no leftovers, and work goes on."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and for power cuts alone
    for step in range(1000):
        cache = filled(tmp_path / str(step))
        if in_child(partial(play_until, step, partial(SCENES[name], cache))) == 0:
            break
        for digest, plan in PLANS.items():
            assert content_of(cache, digest) in (plan, None), step
        assert recall(cache, A) in ([1, 2, 3], None)
        assert in_child(partial(_goes_on, cache)) == 0, step  # a child, so that it may not hang
        left = {name for name in visible(cache) if len(name) != 64}
        assert {Path(name).suffix for name in left} <= {".damaged", ".v1"}, step
    assert step > 5


def _goes_on(cache: Cache) -> None:
    signal.alarm(30)
    cache.limit_bytes = None
    for digest, plan in PLANS.items():
        with cache.lock(digest):
            cache.store(digest, writes(plan))
        assert content_of(cache, digest) == plan
    remember(cache, A, [1, 2, 3])
    assert recall(cache, A) == [1, 2, 3]


def test_killed_while_the_plan_is_written(cache: Cache) -> None:
    """After a crash the next process must build, not load half a plan or wait for a dead one."""

    def dies(temporary: Path) -> dict[str, Any]:
        (temporary / PLAN).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def child() -> None:
        with cache.lock(C):
            cache.store(C, dies)

    assert in_child(child) == -signal.SIGKILL
    assert cache.find(C) is None
    assert {entry.digest for entry in cache.entries()} == {A, B}
    assert len(visible(cache)) == 5  # two locks, and what was half written
    cache.open()
    assert visible(cache) == {A, B}
    build(cache)
    assert cache.clear() == 3 and not cache.engines.exists()
