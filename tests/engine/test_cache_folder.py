"""Folders that are missing, read-only, full, or not the user's."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import PLAN, Cache, StoreError
from singlecard.engine.memory import recall, remember
from singlecard.errors import BuildError, CacheError
from singlecard.warning import SinglecardWarning
from tests.engine.stores import A, B, C, content_of, flip, in_child, visible, writes


def as_reader(cache: Cache, work: Callable[[Cache], object]) -> int:
    """Do something in a process that may read the cache and not write to it."""
    for path in (cache.folder, cache.engines, *cache.engines.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    temporary = cache.folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)
    temporary.chmod(0o777)
    cache.folder.parent.chmod(0o755)
    before = _state(cache)

    def child() -> None:
        os.chdir(cache.folder.parent)  # the way to it is closed to others
        tempfile.tempdir = temporary.name
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        work(Cache(Path(cache.folder.name), fallback=cache.fallback))

    status = in_child(child)
    assert _state(cache) == before
    for path in (cache.folder, cache.engines):
        path.chmod(0o700)
    return status


def _state(cache: Cache) -> dict[str, int]:
    found = [cache.engines, *cache.engines.rglob("*")]
    return {str(path): path.stat().st_mtime_ns for path in found}


def test_read_only_folder_is_read(cache: Cache) -> None:
    """Engines baked into an image must be found there, though no use of them can be noted."""

    def work(cache: Cache) -> None:
        assert content_of(cache, A) == b"plan of a" and len(cache.entries()) == 2
        entry = cache.find(B)
        assert entry is not None and bytes(entry.hold().map()) == b"plan of b, longer"
        remember(cache, A, 1)
        assert recall(cache, A) is None and cache.sweep() == 0

    assert as_reader(cache, work) == 0


def test_read_only_folder_that_lacks_an_engine(cache: Cache) -> None:
    """A model that changed since the image was made must still run, and say what that costs."""
    flip(cache.path(B) / PLAN)

    def work(cache: Cache) -> None:
        assert cache.find(C) is None and cache.find(B) is None
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for digest in (C, B):
                with cache.lock(digest):
                    entry = cache.store(digest, writes(b"built here"))
        assert content_of(cache, C) == content_of(Cache(cache.folder), B) == b"built here"
        folder = entry.folder.parent
        assert folder.stat().st_mode & 0o077 == 0 and folder.stat().st_uid == os.getuid()
        (warning,) = seen
        assert issubclass(warning.category, SinglecardWarning)
        assert str(cache.folder) in str(warning.message)
        assert "temporary folder" in str(warning.message) and "cache_dir" in str(warning.message)

    assert as_reader(cache, work) == 0
    assert not cache.path(C).exists()


def test_without_fallback_a_read_only_folder_is_an_error(cache: Cache) -> None:
    """Who builds engines to ship them must not find them gone with the process."""
    cache.fallback = False

    def work(cache: Cache) -> None:
        for use in (cache.open, lambda: cache.store(C, writes(b"c"))):
            with pytest.raises(CacheError, match="is not writable.*cache_dir or SINGLECARD_CACHE"):
                use()
        assert content_of(cache, A) == b"plan of a"

    assert as_reader(cache, work) == 0


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A home that is read-only, as in many containers, must not stop a model."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary").chmod(0o777)
    tmp_path.chmod(0o755)

    def child() -> None:
        os.chdir(tmp_path)
        tempfile.tempdir = "temporary"
        if os.getuid() == 0:
            os.setuid(65534)
        cache = Cache(Path("home") / "cache" / "singlecard")
        assert cache.find(C) is None
        with pytest.warns(SinglecardWarning, match="Permission denied"):
            cache.store(C, writes(b"c"))
        assert content_of(cache, C) == b"c"

    assert in_child(child) == 0
    assert list(home.iterdir()) == []


def test_temporary_folder_ends_with_its_process(tmp_path: Path) -> None:
    """Engines of gigabytes in /tmp would fill it, a start at a time, killed processes' too."""

    def child(last: Callable[[int], object]) -> None:
        os.environ["TMPDIR"] = str(tmp_path)
        script = (
            "import os, sys, pathlib\n"
            "from singlecard.engine import private\n"
            "path = private.private_folder(pathlib.Path('cache'), make=True)\n"
            "(path / 'engine').write_text('x')\n"
        )
        last_line = "os.kill(os.getpid(), 9)\n" if last is os.kill else ""
        os.execv(os.sys.executable, [os.sys.executable, "-c", script + last_line])

    assert in_child(lambda: child(os.kill)) == -9
    assert len(list(tmp_path.iterdir())) == 2  # the folder and its lock
    assert in_child(lambda: child(os._exit)) == 0
    assert list(tmp_path.iterdir()) == []


def test_private_folders_stand_for_one_cache_each(tmp_path: Path, cache: Cache) -> None:
    """Engines that went to a temporary folder must not be taken for those of another cache."""
    from singlecard.engine.private import private_folder

    made = private_folder(tmp_path / "x", make=True)
    assert made == private_folder(tmp_path / "x", make=False)
    assert private_folder(tmp_path / "y", make=False) is None
    assert made is not None and made.is_dir()


def test_file_instead_of_folder(tmp_path: Path) -> None:
    """The error names the folder and the way out."""
    path = tmp_path / "file"
    path.write_text("")
    for folder in (path, path / "below"):
        with pytest.raises(CacheError, match="cache_dir or SINGLECARD_CACHE") as caught:
            Cache(folder).store(A, writes(b""))
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("part", ["folder", "engines"])
def test_folder_that_everybody_may_write_to(cache: Cache, part: str) -> None:
    """An engine is code: one that anybody could have put there is neither stored nor loaded."""
    folder = getattr(cache, part)
    folder.chmod(0o777)
    for use in (lambda: cache.store(C, writes(b"c")), lambda: cache.find(A)):
        with pytest.raises(CacheError, match="chmod o-w") as caught:
            use()
        assert str(folder) in str(caught.value)


def test_folder_of_another_user(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner of the folder could replace engines."""
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    if cache.folder.stat().st_uid == 0:  # root can replace anything anyhow
        os.chown(cache.folder, 1234, -1)
    for use in (lambda: cache.store(C, writes(b"c")), lambda: cache.find(A)):
        with pytest.raises(CacheError, match="belongs to another user.*cache_dir") as caught:
            use()
        assert str(cache.folder) in str(caught.value)


def test_missing_folder_is_empty(tmp_path: Path) -> None:
    """Looking at a cache that was never used makes nothing and fails nothing."""
    store = Cache(tmp_path / "none")
    assert (store.find(A), store.entries(), store.verify(), store.clear()) == (None, [], {}, 0)
    assert store.prune(0) == [] and store.sweep() == 0 and store.remove(A)
    assert not store.folder.exists()


def test_folder_from_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SINGLECARD_CACHE chooses the folder where no option does."""
    monkeypatch.setenv("SINGLECARD_CACHE", str(tmp_path))
    assert Cache().folder == tmp_path


def test_folder_that_is_removed_while_an_engine_is_built(cache: Cache) -> None:
    """Somebody who clears the cache by hand must not get half an engine, or a strange error."""

    def write(folder: Path) -> dict[str, Any]:
        shutil.rmtree(cache.folder)
        return writes(b"c")(folder)

    with pytest.raises(StoreError, match="No such file or directory") as caught:
        cache.store(C, write)
    assert str(cache.engines) in str(caught.value)
    cache.store(C, writes(b"c"))
    assert content_of(cache, C) == b"c"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_failed_write_leaves_nothing(cache: Cache, error: BaseException) -> None:
    """Half an entry would take space for ever, or be taken for a whole one."""

    def fails(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"half")
        raise error

    expected = StoreError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        cache.store(C, fails)
    assert visible(cache) == {A, B}
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value) and str(cache.engines) in str(caught.value)
        assert "Free some space" in str(caught.value)


@pytest.mark.parametrize("call", ["fsync", "mkdir", "open", "rename", "write"])
def test_full_disk_at_every_step(cache: Cache, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Disks report that they are full when they like: a network one when a file is synced."""

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_text", full)
        elif call == "rename":
            patch.setattr(Path, "rename", full)
        else:
            patch.setattr(os, call, full)
        with pytest.raises(StoreError, match="No space left"):
            cache.store(C, writes(b"c"))
    assert visible(cache) == {A, B}


def test_failed_write_keeps_the_old_entry(cache: Cache) -> None:
    """A rebuild that fails must not take away what was there."""

    def fails(folder: Path) -> dict[str, Any]:
        raise BuildError("refused")

    with pytest.raises(BuildError):
        cache.store(A, fails)
    assert cache.find(A) is not None
