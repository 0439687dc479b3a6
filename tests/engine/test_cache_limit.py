"""What goes when there is too much, and what does not."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine import entry as entries
from singlecard.engine import eviction, hold, locking
from singlecard.engine.cache import PLAN, Cache
from singlecard.engine.memory import recall, remember
from singlecard.errors import CacheError, OptionError
from singlecard.sizes import bytes_from_text
from tests.engine.stores import A, B, C, content_of, flip, visible, writes


def order(cache: Cache) -> list[str]:
    return [entry.digest for entry in cache.entries()]


def test_prune_removes_the_least_recently_used(cache: Cache) -> None:
    """A bound on the cache's size must not evict what is used every day."""
    old, new = time.time() - 1000, time.time() - 10
    os.utime(cache.path(A), (old, old))
    os.utime(cache.path(B), (new, new))
    assert cache.find(A) is not None  # used now: B is the older one
    assert order(cache) == [A, B]
    assert [entry.digest for entry in cache.prune(10)] == [B]
    assert visible(cache) == {A}
    assert cache.prune(10) == []
    assert [entry.digest for entry in cache.prune(0)] == [A]


@pytest.mark.parametrize("now", [0, 10**18, 2 * 10**18])
def test_a_clock_that_jumps_changes_no_order(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, now: int
) -> None:
    """A laptop that woke up in 1970 must not evict the model that it is just using."""
    future = time.time() + 10**8
    os.utime(cache.path(B), (future, future))
    monkeypatch.setattr(eviction.time, "time_ns", lambda: now)
    assert cache.find(A) is not None
    assert order(cache) == [A, B]
    assert cache.find(B) is not None
    assert order(cache) == [B, A]
    cache.store(C, writes(b"c"))
    assert order(cache) == [C, B, A]


def test_storing_keeps_to_the_limit(tmp_path: Path) -> None:
    """A folder without a bound fills the disk in a year of new models."""
    cache = Cache(tmp_path / "c", limit_bytes=25)
    for digest in (A, B):
        cache.store(digest, writes(b"0123456789"))
    assert cache.find(A) is not None
    cache.store(C, writes(b"0123456789"))
    assert visible(cache) == {A, C}
    cache.store("d" * 64, writes(b"x" * 100))  # more than the limit by itself
    assert visible(cache) == {"d" * 64}


def test_kernels_count_with_their_engine(tmp_path: Path) -> None:
    """A card's kernels lie beside the plan, and would fill the disk outside of the limit."""
    cache = Cache(tmp_path / "c")
    for digest in (A, B):
        cache.store(digest, writes(b"0123456789"))
    (cache.path(A) / "kernels.some-card.cuda13.1.7.bin").write_bytes(bytes(100))
    assert cache.find(A) is not None
    assert not cache.prune(120)
    assert [entry.digest for entry in cache.prune(119)] == [B]
    assert not cache.prune(110)
    assert [entry.digest for entry in cache.prune(109)] == [A]


def test_damaged_entries_go_first(tmp_path: Path) -> None:
    """What nobody can use must not push out what is used."""
    cache = Cache(tmp_path / "c", limit_bytes=25)
    for digest in (A, B):
        cache.store(digest, writes(b"0123456789"))
    flip(cache.path(B) / PLAN)
    assert cache.find(B) is None and visible(cache) == {A, f"{B}.damaged"}
    cache.store(B, writes(b"0123456789"))
    assert visible(cache) == {A, B}


def test_what_is_held_is_never_removed(cache: Cache) -> None:
    """A running model would lose the file that it reads its weights from."""
    with cache.entries()[0].hold() as held:
        assert cache.prune(0) and cache.clear() == 0
        assert visible(cache) == {B} and not cache.remove(B)
        with held.share() as second:
            held.close()
            assert not cache.remove(B) and bytes(second.map()) == b"plan of b, longer"
    assert cache.remove(B) and visible(cache) == set()


def test_what_was_found_is_held(cache: Cache) -> None:
    """Between finding an engine and loading it, another process may store one of its own."""
    found, stored = cache.find(A), cache.store(C, writes(b"c"))
    assert [entry.digest for entry in cache.prune(0)] == [B]
    held = stored.hold()
    assert found is not None
    del found, stored
    assert [entry.digest for entry in cache.prune(0)] == [A]
    held.close()
    assert [entry.digest for entry in cache.prune(0)] == [C]


def _hold(folder: Path, ready: Any, done: Any) -> None:
    entry = Cache(folder).find(A)
    assert entry is not None
    with entry.hold():
        ready.set()
        done.wait(60)


def test_what_another_process_holds_stays_until_it_dies(cache: Cache) -> None:
    """A bound that one process keeps must not break the model that another one runs."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(cache.folder, ready, done))
    process.start()
    try:
        assert ready.wait(60)
        assert [entry.digest for entry in cache.prune(0)] == [B] and cache.clear() == 0
        limited = Cache(cache.folder, limit_bytes=0)
        limited.store(C, writes(b"c"))
        assert visible(cache) == {A, C}
    finally:
        process.kill()
        process.join()
    assert len(cache.prune(0)) == 2 and visible(cache) == set()


@pytest.mark.parametrize("again", [False, True])
def test_removed_between_opening_and_holding(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A plan that can be read still, and has lost its name, would be gone when it is loaded."""
    (listed,) = [entry for entry in cache.entries() if entry.digest == A]
    real, other = entries.open_file, Cache(cache.folder)

    def open_file(path: Any, folder: int | None = None) -> int:
        descriptor = real(path, folder)
        if Path(path).name == PLAN and other.remove(A) and again:
            monkeypatch.setattr(entries, "open_file", real)
            other.store(A, writes(b"plan of a"))
        return descriptor

    monkeypatch.setattr(entries, "open_file", open_file)
    found = cache.find(A)
    assert (found is not None) == again
    assert found is None or (found.plan.exists() and not other.remove(A))
    if not again:
        monkeypatch.setattr(entries, "open_file", real)
        cache.store(A, writes(b"plan of a"))
        monkeypatch.setattr(entries, "open_file", open_file)
        with pytest.raises(CacheError, match="just removed"):
            listed.hold()


def test_an_engine_that_is_spared_at_the_last_moment_is_whole(cache: Cache) -> None:
    """Who makes room locks an engine, and may leave it after all: that is no damage."""
    found: list[bytes | None] = []
    with (cache.path(A) / PLAN).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=lambda: found.append(content_of(cache, A)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
    thread.join(30)
    assert found == [b"plan of a"] and visible(cache) == {A, B}


def test_holding_what_is_gone_says_so(cache: Cache) -> None:
    """A list of engines is old the moment it is shown."""
    entry = cache.entries()[0]
    cache.remove(entry.digest)
    with pytest.raises(CacheError, match="Run again") as caught:
        entry.hold()
    assert str(entry.plan) in str(caught.value)


def test_a_closed_hold_gives_no_file(cache: Cache) -> None:
    """A descriptor that the system has given to another file since would be read as an engine."""
    entry = cache.find(A)
    assert entry is not None
    held = entry.hold()
    mapped = held.map()
    held.close()
    held.close()
    assert bytes(mapped) == b"plan of a"
    with pytest.raises(ValueError, match="closed"):
        held.map()


def test_used_since_it_was_chosen(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that somebody asks for while room is made is not the oldest any more."""
    real = cache.shelf.remove

    def remove(path: Path, **given: Any) -> bool:
        assert Cache(cache.folder).find(A) is not None
        return real(path, **given)

    monkeypatch.setattr(cache.shelf, "remove", remove)
    assert [entry.digest for entry in cache.prune(0)] == [B]
    assert visible(cache) == {A}


def test_without_locks_only_the_user_removes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can tell whether an engine is in use, a limit is not worth a running model."""

    def unsupported(*_: Any, **__: Any) -> bool:
        raise locking.Unsupported

    for module in (hold, eviction, locking):
        monkeypatch.setattr(module, "lock_descriptor", unsupported)
    Cache(cache.folder, limit_bytes=0).store(C, writes(b"c"))
    assert visible(cache) == {A, B, C}
    assert len(cache.prune(0)) == 3


def test_limit_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet is given its bound in one place; one that cannot be read must not mean none."""
    monkeypatch.setenv("SINGLECARD_CACHE_LIMIT", "20GB")
    assert Cache(tmp_path).limit_bytes == 20 * 10**9
    assert Cache(tmp_path, limit_bytes=5).limit_bytes == 5
    monkeypatch.setenv("SINGLECARD_CACHE_LIMIT", "plenty")
    with pytest.raises(OptionError, match="SINGLECARD_CACHE_LIMIT: 'plenty' is no size"):
        Cache(tmp_path)
    monkeypatch.setenv("SINGLECARD_CACHE_LIMIT", "")
    assert Cache(tmp_path).limit_bytes is None


def test_sizes_as_people_write_them() -> None:
    """A unit that is read wrong is a cache a thousand times too small."""
    given = ("7", "7b", "1.5 GB", " 500MB ", "2tb", "3kb", "1GiB")
    assert list(map(bytes_from_text, given)) == [7, 7, 1.5e9, 5e8, 2e12, 3e3, 2**30]
    for wrong in ("", "GB", "-1", "1 e3", "1GIBI", "٣"):
        with pytest.raises(ValueError, match="500MB or 8GiB"):
            bytes_from_text(wrong)


def test_memories_go_with_the_rest(cache: Cache) -> None:
    """What was decided is kept whole or not at all, and cleared with the engines."""
    remember(cache, A, {"decided": [1, 2]})
    assert recall(cache, A) == {"decided": [1, 2]} and recall(cache, B) is None
    (path,) = cache.engines.glob("*.memory.*")
    for content in (b"", b"{}", b"[" * 100_000, path.read_bytes().replace(b"2", b"3")):
        path.write_bytes(content)
        assert recall(cache, A) is None
    assert len(cache.entries()) == 2 and cache.clear() == 2 and not cache.engines.exists()


def test_content_survives_eviction_of_others(cache: Cache) -> None:
    """Making room must not harm what stays."""
    assert cache.find(A) is not None
    cache.prune(9)
    assert content_of(cache, A) == b"plan of a" and content_of(cache, B) is None
