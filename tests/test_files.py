"""What is read is a regular file with an end, and nobody waits for another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import Cache
from singlecard.engine.memory import recall, remember
from singlecard.engine.signing import read_key
from singlecard.errors import CalibrationError, OptionError
from singlecard.files import open_regular, read_file
from singlecard.offline.build_file import read_build_file
from singlecard.precision.table import CalibrationTable


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123")
    path.chmod(0o600)
    assert read_file(path, 4) == read_file(path, 4, private=True) == b"0123"
    with pytest.raises(OSError, match="more than 3 bytes"):
        read_file(path, 3)


@pytest.mark.parametrize("private", [False, True])
def test_what_is_no_file(tmp_path: Path, private: bool) -> None:
    """A pipe is waited for without end; a device is read until the memory is full."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, Path("a\0b"), tmp_path / "none"):
        with pytest.raises(OSError):
            open_regular(path, private=private)


def test_a_file_of_our_own(tmp_path: Path) -> None:
    """A link, or what others may write to, is somebody else's word in our own folder."""
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_bytes(b"x")
    link.symlink_to(path)
    path.chmod(0o666)
    with pytest.raises(OSError, match="others may write to it"):
        read_file(path, 9, private=True)
    assert read_file(link, 9) == b"x"
    path.chmod(0o664)  # as many systems make files
    assert read_file(path, 9, private=True) == b"x"
    with pytest.raises(OSError):
        read_file(link, 9, private=True)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        with pytest.raises(OSError, match="belongs to another user"):
            read_file(path, 9, private=True)


def test_a_memo_that_others_wrote_is_none(tmp_path: Path) -> None:
    """It names the engine that is run for a model."""
    cache = Cache(tmp_path)
    remember(cache, "d" * 64, {"a": 1})
    assert recall(cache, "d" * 64) == {"a": 1}
    (memo,) = cache.engines.glob("*.memory.*")
    memo.chmod(0o666)
    assert recall(cache, "d" * 64) is None
    memo.unlink()
    os.mkfifo(memo)
    assert recall(cache, "d" * 64) is None


READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "calibration table": (CalibrationTable.load, CalibrationError),
    "build file": (read_build_file, OptionError),
    "signing key": (read_key, OptionError),
}


@pytest.mark.parametrize("name", READERS)
def test_readers_name_what_is_no_file(name: str, tmp_path: Path) -> None:
    """Whoever gave the path is told, instead of a process that stands still."""
    read, error = READERS[name]
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(error, match=str(path)):
            read(path)
