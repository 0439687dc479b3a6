"""What lies in an entry's place and is not what was stored there."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine import entry as entries
from singlecard.engine import hold
from singlecard.engine.cache import FORMAT, MANIFEST, PLAN, Cache
from singlecard.engine.entry import seal_of
from tests.engine.stores import A, B, C, content_of, edit, flip, visible, writes


def reseal(folder: Path, **changes: Any) -> None:
    """Change fields of a manifest as a release of singlecard would write it."""
    edit(folder / MANIFEST, **changes)
    manifest = entries.json.loads((folder / MANIFEST).read_text())
    manifest.pop("manifest_digest")
    edit(folder / MANIFEST, manifest_digest=seal_of(manifest))


def replace(path: Path, make: Any) -> None:
    path.unlink()
    make(path)


DAMAGES: dict[str, Any] = {
    "a bit of the plan": lambda folder: flip(folder / PLAN),
    "a truncated plan": lambda folder: os.truncate(folder / PLAN, 4),
    "a longer plan": lambda folder: os.truncate(folder / PLAN, 5000),
    "no plan": lambda folder: (folder / PLAN).unlink(),
    "an empty plan": lambda folder: os.truncate(folder / PLAN, 0),
    "a folder as the plan": lambda folder: replace(folder / PLAN, Path.mkdir),
    "a pipe as the plan": lambda folder: replace(folder / PLAN, os.mkfifo),
    "a link as the plan": lambda folder: replace(
        folder / PLAN, lambda path: path.symlink_to(folder.parent / B / PLAN)
    ),
    "another entry's plan": lambda folder: shutil.copy(folder.parent / B / PLAN, folder / PLAN),
    "a truncated manifest": lambda folder: os.truncate(folder / MANIFEST, 20),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "a pipe as the manifest": lambda folder: replace(folder / MANIFEST, os.mkfifo),
    "a manifest that is a list": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "a manifest of bytes": lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe\x00"),
    "a manifest too deep": lambda folder: (folder / MANIFEST).write_text("[" * 100_000),
    "a manifest without sizes": lambda folder: reseal(folder, plan_bytes=None),
    "another format by hand": lambda folder: edit(folder / MANIFEST, format=99),
    "a changed report": lambda folder: edit(folder / MANIFEST, report={"kernels": []}),
    "another entry's copy": lambda folder: shutil.copytree(
        folder.parent / B, folder, dirs_exist_ok=True
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_entry_is_set_aside(
    cache: Cache, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged plan crashes the process that loads it, or answers wrong; a pipe hangs it."""
    DAMAGES[name](cache.path(A))
    assert cache.verify()[A] is not None and cache.verify()[B] is None
    with caplog.at_level(logging.INFO, "singlecard.cache"):
        found = cache.look(A)
    assert found.entry is None and f"{cache.path(A)} is damaged: " in found.reason
    assert found.reason in caplog.text and f"set aside as {A}.damaged" in caplog.text
    assert visible(cache) == {f"{A}.damaged", B}
    cache.store(A, writes(b"rebuilt"))
    assert content_of(cache, A) == b"rebuilt"


def test_damage_is_replaced_by_whoever_did_not_look(cache: Cache) -> None:
    """An entry that was damaged while it was built again must not fail the build at its end."""
    flip(cache.path(A) / PLAN)
    assert cache.store(A, writes(b"rebuilt")).plan.read_bytes() == b"rebuilt"
    assert content_of(cache, A) == b"rebuilt"


def test_a_whole_entry_stays_when_another_is_stored(cache: Cache) -> None:
    """Two that built the same without knowing of each other must agree on one plan."""
    stored = cache.store(A, writes(b"built twice"))
    assert stored.plan.read_bytes() == content_of(cache, A) == b"plan of a"
    assert stored.size == 9 and visible(cache) == {A, B}


def test_swapped_entries_are_set_aside(cache: Cache) -> None:
    """A whole entry under another's name is whole, and another model."""
    a, b, aside = cache.path(A), cache.path(B), cache.folder / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    assert cache.find(A) is None and cache.find(B) is None


def test_foreign_things_in_an_entrys_place(cache: Cache, tmp_path: Path) -> None:
    """A file, a pipe or a link where an entry belongs must not stop the model from being built."""
    place = cache.path(C)
    for make in (lambda: place.write_text("notes"), lambda: os.mkfifo(place), place.mkdir):
        make()
        assert cache.find(C) is None
        assert cache.store(C, writes(b"c")).plan.read_bytes() == b"c"
        cache.remove(C)
    shutil.move(str(cache.path(A)), tmp_path / "elsewhere")
    cache.path(A).symlink_to(tmp_path / "elsewhere")
    assert cache.find(A) is None
    assert cache.store(A, writes(b"a again")).plan.read_bytes() == b"a again"
    assert (tmp_path / "elsewhere" / PLAN).read_bytes() == b"plan of a"


def test_damaged_twice(cache: Cache) -> None:
    """The place for damaged entries may be taken already."""
    for _ in range(2):
        flip(cache.path(A) / PLAN)
        assert cache.find(A) is None
        cache.store(A, writes(b"plan of a"))
    assert cache.find(A) is not None and visible(cache) == {A, B, f"{A}.damaged"}


def test_entry_that_is_replaced_while_it_is_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old damage must not be blamed on the whole entry that another process has just put there."""
    flip(cache.path(A) / PLAN)
    real, calls = entries.Opened.read, []

    def read(place: entries.Opened) -> entries.Entry:
        calls.append(place.path)
        try:
            return real(place)
        except entries.Damaged:
            shutil.rmtree(cache.path(A))
            other.store(A, writes(b"by another"))
            raise

    other = Cache(cache.folder)
    monkeypatch.setattr(entries.Opened, "read", read)
    assert content_of(cache, A) == b"by another"
    assert len(calls) == 2 and visible(cache) == {A, B}


def test_entry_that_vanishes_while_it_is_read(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may prune at any time: that is a miss, and no error."""
    real = entries.open_file

    def vanish(path: Any, folder: int | None = None) -> int:
        shutil.rmtree(cache.path(A))
        return real(path, folder)

    monkeypatch.setattr(entries, "open_file", vanish)
    assert cache.find(A) is None and visible(cache) == {B}


def test_a_bad_disk_is_damage(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that cannot be read must cost one build, not kill the process at every start."""

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(hold.os, "preadv", fails)
    found = cache.look(A)
    assert found.entry is None and "Input/output error" in found.reason
    assert visible(cache) == {f"{A}.damaged", B}


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_machine_in_trouble_is_not_damage(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A process with too many open files would throw away every engine that it asks for."""

    def fails(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(entries, "open_file", fails)
        found = cache.look(A)
    assert found.entry is None and os.strerror(number) in found.reason
    assert content_of(cache, A) == b"plan of a"


def test_another_releases_entry_is_left_alone(cache: Cache, recwarn: Any) -> None:
    """Two releases that share a folder must not throw away each other's engines in turn."""
    reseal(cache.path(A), format=FORMAT + 1)
    before = (cache.path(A) / MANIFEST).read_text()
    found = cache.look(A)
    assert found.entry is None and found.other_format
    assert f"format {FORMAT + 1} instead of {FORMAT}" in found.reason
    assert A not in cache.verify() and [entry.digest for entry in cache.entries()] == [B]
    with cache.lock(A):
        stored = cache.store(A, writes(b"ours"))
    assert stored.plan.read_bytes() == content_of(cache, A) == b"ours"
    (warning,) = [str(item.message) for item in recwarn if str(cache.path(A)) in str(item.message)]
    assert "another release" in warning and "cache_dir" in warning
    cache.prune(0)
    cache.clear()
    assert (cache.path(A) / MANIFEST).read_text() == before and visible(cache) == {A}


def test_formats_have_folders_of_their_own(cache: Cache) -> None:
    """What the next release puts into the same folder must not be touched by this one."""
    newer = cache.folder / f"engines.v{FORMAT + 1}" / A
    newer.mkdir(parents=True)
    (newer / PLAN).touch()
    assert cache.clear() == 2 and (newer / PLAN).exists()
    assert {path.name for path in cache.folder.iterdir()} == {newer.parent.name}
