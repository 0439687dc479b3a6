"""Engines on disk: whole or not there, private, built once."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.engine import build
from singlecard.engine.build import get_engine, key_digest, key_parts
from singlecard.engine.cache import MANIFEST, PLAN, Cache
from singlecard.errors import BuildError, CacheError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net

A, B = "a" * 64, "b" * 64


def writes(content: bytes) -> Any:
    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(content)
        return {"key": {"network": "n"}, "build_seconds": 0.5, "report": {}}

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    store = Cache(tmp_path / "cache")
    store.store(A, writes(b"plan of a"))
    store.store(B, writes(b"plan of b, longer"))
    return store


def visible(cache: Cache) -> set[str]:
    """What lies in the folder beside locks."""
    return {path.name for path in cache.folder.iterdir() if path.suffix != ".lock"}


def test_round_trip(cache: Cache) -> None:
    """What was stored is found, with its facts; what was not is missing."""
    entry = cache.find(A)
    assert entry is not None and entry.plan.read_bytes() == b"plan of a"
    assert entry.size == 9 and entry.manifest["build_seconds"] == 0.5
    assert cache.find("c" * 64) is None
    assert visible(cache) == {A, B}


def test_folder_is_private(cache: Cache) -> None:
    """Whoever can write engines there runs code as the user."""
    assert cache.folder.stat().st_mode & 0o077 == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES: dict[str, Any] = {
    "a bit of the plan": lambda folder: flip(folder / PLAN),
    "a truncated plan": lambda folder: os.truncate(folder / PLAN, 4),
    "no plan": lambda folder: (folder / PLAN).unlink(),
    "an empty plan": lambda folder: os.truncate(folder / PLAN, 0),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 20),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "a manifest of bytes": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "another format": lambda folder: edit(folder / MANIFEST, format=99),
    "a changed report": lambda folder: edit(folder / MANIFEST, report={"kernels": []}),
    "another entry's plan": lambda folder: shutil.copy(folder.parent / B / PLAN, folder / PLAN),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_entry_is_set_aside(cache: Cache, name: str) -> None:
    """A damaged plan crashes the process that loads it, or answers wrong."""
    DAMAGES[name](cache.folder / A)
    assert cache.verify()[A] is not None and cache.verify()[B] is None
    assert cache.find(A) is None
    assert visible(cache) == {f"{A}.damaged", B}
    cache.store(A, writes(b"rebuilt"))
    entry = cache.find(A)
    assert entry is not None and entry.plan.read_bytes() == b"rebuilt"


def test_swapped_entries_are_set_aside(cache: Cache) -> None:
    """A whole entry under another's name is whole, and another model."""
    a, b, aside = cache.folder / A, cache.folder / B, cache.folder / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    assert cache.find(A) is None and cache.find(B) is None


def test_foreign_things_in_an_entrys_place(cache: Cache, tmp_path: Path) -> None:
    """A file or a link where an entry belongs must not stop the model from being built."""
    place = cache.folder / ("c" * 64)
    place.write_text("notes")
    assert cache.find(place.name) is None
    assert cache.store(place.name, writes(b"c")).plan.read_bytes() == b"c"
    shutil.move(str(cache.folder / A), tmp_path / "elsewhere")
    (cache.folder / A).symlink_to(tmp_path / "elsewhere")
    assert cache.find(A) is None
    assert cache.store(A, writes(b"a again")).plan.read_bytes() == b"a again"


def test_damaged_twice(cache: Cache) -> None:
    """The place for damaged entries may be taken already."""
    for _ in range(2):
        flip(cache.folder / A / PLAN)
        assert cache.find(A) is None
        cache.store(A, writes(b"plan of a"))
    assert cache.find(A) is not None


def test_entry_that_vanishes_while_it_is_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may prune at any time: that is a miss, and no error."""

    def vanish(folder: Path) -> None:
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(cache, "_read", vanish)
    assert cache.find(A) is None


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_failed_write_leaves_nothing(cache: Cache, error: BaseException) -> None:
    """Half an entry would take space for ever, or be taken for a whole one."""

    def fails(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"half")
        raise error

    expected = CacheError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        cache.store("c" * 64, fails)
    assert visible(cache) == {A, B}
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and str(cache.folder) in str(caught.value)
        assert "Free some space" in str(caught.value)


def test_failed_write_keeps_the_old_entry(cache: Cache) -> None:
    """A rebuild that fails must not take away what was there."""

    def fails(folder: Path) -> dict[str, Any]:
        raise BuildError("refused")

    with pytest.raises(BuildError):
        cache.store(A, fails)
    assert cache.find(A) is not None


def _store_and_die(folder: Path) -> None:
    def dies(temporary: Path) -> dict[str, Any]:
        (temporary / PLAN).write_bytes(b"half")
        os._exit(9)

    store = Cache(folder)
    with store.lock("c" * 64):
        store.store("c" * 64, dies)


def test_killed_writer_leaves_nothing_visible(cache: Cache) -> None:
    """After a crash the next process must build, not load half a plan or wait for a dead one."""
    process = multiprocessing.get_context("fork").Process(
        target=_store_and_die, args=(cache.folder,)
    )
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert cache.find("c" * 64) is None
    assert {entry.digest for entry in cache.entries()} == {A, B}
    with cache.lock("c" * 64):
        assert cache.store("c" * 64, writes(b"c")).size == 1
    assert cache.clear() == 4  # the dead one's leftovers too
    assert visible(cache) == set()


def test_file_instead_of_folder(tmp_path: Path) -> None:
    """The error names the folder and the way out."""
    path = tmp_path / "file"
    path.write_text("")
    for folder in (path, path / "below"):
        with pytest.raises(CacheError, match="cache_dir or SINGLECARD_CACHE") as caught:
            Cache(folder).store(A, writes(b""))
        assert str(folder) in str(caught.value)


def test_unwritable_folder(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be stored, and the error says where; what is there can still be used."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CacheError, match="is not writable"):
        cache.store("c" * 64, writes(b"c"))

    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", read_only)
    assert cache.find(A) is not None


def test_folder_that_everybody_may_write_to(cache: Cache) -> None:
    """An engine is code: one that anybody could have put there is neither stored nor loaded."""
    cache.folder.chmod(0o777)
    for use in (lambda: cache.store("c" * 64, writes(b"c")), lambda: cache.find(A)):
        with pytest.raises(CacheError, match="chmod o-w") as caught:
            use()
        assert str(cache.folder) in str(caught.value)


def test_folder_of_another_user(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the folder could replace engines."""
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    owner = cache.folder.stat().st_uid
    if owner == 0:  # root can replace anything anyhow
        os.chown(cache.folder, 1234, -1)
    with pytest.raises(CacheError, match="belongs to another user"):
        cache.find(A)


def test_prune_removes_the_least_recently_used(cache: Cache) -> None:
    """A bound on the cache's size must not evict what is used every day."""
    old, new = time.time() - 1000, time.time() - 10
    os.utime(cache.folder / A, (old, old))
    os.utime(cache.folder / B, (new, new))
    assert cache.find(A) is not None  # used now: B is the older one
    assert [entry.digest for entry in cache.entries()] == [A, B]
    assert [entry.digest for entry in cache.prune(10)] == [B]
    assert visible(cache) == {A}
    assert cache.prune(10) == []
    assert [entry.digest for entry in cache.prune(0)] == [A]


def test_foreign_folders_do_not_disturb(cache: Cache) -> None:
    """Listing, pruning and clearing meet whatever lies there."""
    (cache.folder / "notes").mkdir()
    (cache.folder / "empty").mkdir()
    (cache.folder / "empty" / MANIFEST).write_text("{}")
    assert {entry.digest for entry in cache.entries()} == {A, B}
    assert set(cache.verify()) >= {A, B}
    cache.prune(0)
    cache.clear()


def test_missing_folder_is_empty(tmp_path: Path) -> None:
    """Looking at a cache that was never used makes nothing and fails nothing."""
    store = Cache(tmp_path / "none")
    assert (store.find(A), store.entries(), store.verify(), store.clear()) == (None, [], {}, 0)
    assert not store.folder.exists()


def test_folder_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SINGLECARD_CACHE chooses the folder where no option does."""
    monkeypatch.setenv("SINGLECARD_CACHE", str(tmp_path))
    assert Cache().folder == tmp_path


def small(factor: float = 2.0) -> Lowered:
    net = Net()
    x = net.input("input_0", torch.float32, (4, 4))
    net.mark_output(net.matmul(x, net.constant(torch.full((4, 4), factor))), "output_0")
    return Lowered(net, (), (), {}, {}, {})


SETTINGS = BuildSettings(("sm89",))


def _build(folder: Path, results: Any) -> None:
    engine = get_engine(small(), SETTINGS, Cache(folder))
    results.put((engine.digest, engine.built))


def test_concurrent_processes_build_once(tmp_path: Path) -> None:
    """Eight workers that start together must not build the same engine eight times."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_build, args=(tmp_path / "c", results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert len({digest for digest, _ in found}) == 1
    assert sorted(built for _, built in found) == [False, False, True]


def test_damaged_engine_is_rebuilt_the_same(tmp_path: Path) -> None:
    """Builds are deterministic: a rebuilt engine is the same to the byte."""
    cache = Cache(tmp_path / "c")
    first = get_engine(small(), SETTINGS, cache)
    content = first.plan.read_bytes()
    flip(first.plan)
    again = get_engine(small(), SETTINGS, cache)
    assert first.built and again.built and again.plan.read_bytes() == content
    loaded = get_engine(small(), SETTINGS, cache)
    assert not loaded.built and loaded.seconds == 0 and loaded.report == first.report
    assert get_engine(small(3.0), SETTINGS, cache).digest != first.digest


def test_full_disk_while_the_plan_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan cut off by a full disk must be an error that says so, not an entry."""
    real = build.build_plan

    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def on_full_disk(net: Any, profiles: Any, settings: Any, file: Any, progress: Any) -> Any:
        return real(net, profiles, settings, Full(), progress)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "build_plan", on_full_disk)
    cache = Cache(tmp_path / "c")
    with pytest.raises(CacheError, match="No space left"):
        get_engine(small(), SETTINGS, cache)
    assert visible(cache) == set()


def test_key_parts_are_named(tmp_path: Path) -> None:
    """A miss explains itself only where each part of the key can be read."""
    parts = key_parts(small(), SETTINGS)
    assert {"network", "profiles", "flavour", "version", "targets", "tf32"} <= set(parts)
    assert key_digest(parts) == key_digest(dict(reversed(parts.items())))
