"""Many at once: built once, never in each other's way, and nobody waits for the dead."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine import locking
from singlecard.engine.cache import PLAN, Cache
from singlecard.engine.locking import take, try_take
from tests.engine.stores import A, C, content_of, in_child, visible, writes


def get(cache: Cache, digest: str, built: list[str]) -> bytes:
    """Do what a compilation does: find, else lock, find again, build."""
    found = cache.find(digest)
    if found is None:
        with cache.lock(digest):
            found = cache.find(digest)
            if found is None:

                def write(folder: Path) -> dict[str, Any]:
                    built.append(digest)
                    time.sleep(0.05)
                    return writes(digest.encode())(folder)

                found = cache.store(digest, write)
    return found.plan.read_bytes()


def test_threads_build_once(tmp_path: Path) -> None:
    """A server that warms up its models in threads would build each of them in every thread."""
    start, built = threading.Barrier(8), list[str]()

    def work(number: int) -> list[bytes]:
        cache = Cache(tmp_path / "c")
        start.wait(30)
        return [get(cache, digit * 64, built) for digit in ("abc" if number % 2 else "cba")]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(8)))
    assert sorted(built) == [digit * 64 for digit in "abc"]
    assert all(sorted(found)[0] == b"a" * 64 for found in answers)
    assert visible(Cache(tmp_path / "c")) == set(built)


def test_one_cache_serves_many_threads(cache: Cache) -> None:
    """Sharing one object must be as safe as having one each."""
    start, built = threading.Barrier(6), list[str]()

    def work(_: int) -> bytes:
        start.wait(30)
        return get(cache, C, built)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(work, range(6))) == {C.encode()}
    assert built == [C]


def test_different_engines_do_not_wait_for_each_other(cache: Cache) -> None:
    """A long build must hold up only those who want that engine."""
    with cache.lock(A):
        done = threading.Event()

        def work() -> None:
            with cache.lock(C):
                cache.store(C, writes(b"c"))
            done.set()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert done.wait(30)
        assert cache.find(A) is not None  # nor do those who want what is there


def test_a_forked_child_does_not_keep_its_dead_parents_lock(cache: Cache) -> None:
    """Data loaders outlive a killed trainer; its locks must not live on in them."""
    path = cache.engines / f"{C}.lock"
    reader, writer = os.pipe()

    def parent() -> None:
        lock = take(path)
        orphan = os.fork()
        if orphan == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writer, orphan.to_bytes(8, "little"))
        os.kill(os.getpid(), signal.SIGKILL)
        lock.release()

    try:
        assert in_child(parent) == -signal.SIGKILL
        orphan = int.from_bytes(os.read(reader, 8), "little")
        lock = try_take(path)
        os.kill(orphan, signal.SIGKILL)
        assert lock is not None
        lock.release()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_forked_child_does_not_free_its_parents_lock(cache: Cache) -> None:
    """A child that ends must not let a second builder in."""
    path = cache.engines / f"{C}.lock"
    lock = take(path)
    assert in_child(lock.release) == 0
    assert path.exists() and try_take(path) is None
    lock.release()


def test_a_forked_child_can_check_a_large_engine(cache: Cache) -> None:
    """A child of a process that has checked one would wait for threads that it does not have."""
    large = bytes(32 << 20)
    assert content_of(cache, C) is None
    cache.store(C, writes(large))

    def child() -> None:
        signal.alarm(30)
        assert content_of(cache, C) == large

    assert in_child(child) == 0


def test_a_lock_that_was_removed_while_somebody_waited(tmp_path: Path) -> None:
    """Two would hold the same lock: one on the file that is gone, one on the new one."""
    path = tmp_path / "x.lock"
    first = take(path)
    waiting, order = threading.Event(), list[str]()

    def wait() -> None:
        waiting.set()
        lock = take(path)
        order.append("second")
        assert try_take(path) is None
        lock.release()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(30)
    time.sleep(0.1)  # lets it come to wait; without it, there is less to see
    order.append("first")
    first.release()
    thread.join(30)
    assert order == ["first", "second"] and not path.exists()


def test_a_lock_file_removed_by_hand_is_not_removed_twice(tmp_path: Path) -> None:
    """Freeing a lock whose file is gone must not take away the file of the next holder."""
    path = tmp_path / "x.lock"
    first = take(path)
    path.unlink()
    second = take(path)
    first.release()
    assert path.exists() and try_take(path) is None
    second.release()


def test_a_left_over_lock_file_holds_nobody_up(cache: Cache) -> None:
    """A machine that lost power leaves lock files of the living."""
    stale = cache.engines / f"{C}.lock"
    stale.touch()
    (cache.engines / "names.lock").touch()
    built = list[str]()
    assert get(cache, C, built) == C.encode() and built == [C]
    cache.open()
    assert not list(cache.engines.glob("*.lock"))


def test_link_in_a_locks_place_is_not_followed(cache: Cache, tmp_path: Path) -> None:
    """A lock must not make or remove a file elsewhere."""
    (cache.engines / f"{C}.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        take(cache.engines / f"{C}.lock")
    assert not (tmp_path / "victim").exists()


def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", fails)


def test_a_file_system_without_locks(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """On such a network folder an engine may be built twice; it must never be a mixed one."""
    no_locks(monkeypatch)
    entry = cache.find(A)
    assert entry is not None
    with entry.hold() as held:
        assert bytes(held.map()) == b"plan of a"
    start, built = threading.Barrier(6), list[str]()

    def work(_: int) -> bytes:
        start.wait(30)
        return get(cache, C, built)

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(work, range(6))) == {C.encode()}
    assert built and content_of(cache, C) == C.encode()
    names = {name for name in visible(cache) if len(name) == 64}
    assert A in names and C in names and not list(cache.engines.glob("*.tmp"))


def test_without_locks_the_living_are_not_swept(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process is just writing looks like what a dead one left."""
    no_locks(monkeypatch)

    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"first half")
        assert cache.sweep() == 0
        return writes(b"whole")(folder)

    assert cache.store(C, write).plan.read_bytes() == b"whole"
    (cache.engines / f"{C[:16]}.{C[:16]}.tmp").mkdir()
    cache.open()
    assert len(visible(cache)) == 4
    assert cache.clear() == 3 and not cache.engines.exists()  # the user asked for it


def test_sweeping_leaves_the_living_alone(cache: Cache) -> None:
    """A start of one process must not take away what another is writing."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"first half")
        for _ in range(2):
            assert Cache(cache.folder).sweep() == 0
        return writes(b"whole")(folder)

    with cache.lock(C):
        assert in_child(lambda: Cache(cache.folder).open()) == 0
        assert cache.store(C, write).plan.read_bytes() == b"whole"
    assert visible(cache) >= {A, C} and not list(cache.engines.glob("*.*"))


@pytest.mark.parametrize("done_first", [True, False])
def test_rename_over_a_network(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, done_first: bool
) -> None:
    """A server's lost answer makes a rename that worked look like one that failed."""
    real, failed = Path.rename, list[Path]()

    def rename(path: Path, target: Any) -> Any:
        if Path(target).name == C and not failed:
            failed.append(path)
            if done_first:
                real(path, target)
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            writes_into(Path(target))
        return real(path, target)

    def writes_into(target: Path) -> None:
        target.mkdir()
        (target / PLAN).write_bytes(b"foreign")

    monkeypatch.setattr(Path, "rename", rename)
    assert cache.store(C, writes(b"c")).plan.read_bytes() == b"c"
    assert content_of(cache, C) == b"c"


def _race(folder: Path, number: int, start: Any, results: Any) -> None:
    cache, built = Cache(folder), list[str]()
    start.wait(60)
    digests = [f"{index:064x}" for index in range(6)]
    whole = all(
        get(cache, digest, built) == digest.encode()
        for digest in digests[number:] + digests[:number]
    )
    results.put((whole, built))


def test_processes_build_each_engine_once(tmp_path: Path) -> None:
    """Workers that start together must share their builds, not repeat them."""
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(4), context.Queue()
    processes = [
        context.Process(target=_race, args=(tmp_path / "c", number, start, results))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    built = sorted(digest for _, digests in found for digest in digests)
    assert built == [f"{index:064x}" for index in range(6)]
    assert all(whole for whole, _ in found)
    assert visible(Cache(tmp_path / "c")) == set(built)


def test_flock_is_what_holds(tmp_path: Path) -> None:
    """Other tools must be able to see who holds what."""
    lock = take(tmp_path / "x.lock")
    with (tmp_path / "x.lock").open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lock.release()
