"""One engine on disk: a folder with the plan and a manifest, each checked when it is read."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from singlecard.engine.hold import Hold
from singlecard.errors import CacheError

FORMAT = 1
PLAN, MANIFEST = "engine.plan", "manifest.json"

#: What a file that is gone, a bad disk, and things that are no files answer: the entry's own fault.
#: All other errors, such as too many open files, say nothing of the entry.
_DAMAGE = {errno.ENOENT, errno.EIO, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EUCLEAN}

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Damaged(Exception):
    """What lies in an entry's place is not what was stored there."""


class OtherFormat(Exception):
    """A whole entry that another release of singlecard wrote, and this one cannot read."""


@dataclass(frozen=True)
class Entry:
    """A built engine on disk.

    One that `Cache.find` or `Cache.store` returned stays there at least as long as this object, or
    a `hold` of it: no process's cache removes it to make room.
    """

    digest: str
    folder: Path
    manifest: dict[str, Any]
    _held: Hold | None = field(default=None, repr=False, compare=False)

    @property
    def plan(self) -> Path:
        return self.folder / PLAN

    @property
    def size(self) -> int:
        return int(self.manifest["plan_bytes"])

    def hold(self) -> Hold:
        """Keep the engine on disk until the hold is closed or this process ends.

        Raises:
            CacheError: it is gone already; only where `Cache.entries` listed it.
        """
        if self._held is not None:
            return self._held.share()
        try:
            held = Hold(open_file(self.plan))
            if not held.is_at(self.plan):
                raise FileNotFoundError(errno.ENOENT, "it was just removed", str(self.plan))
            return held
        except (OSError, Damaged) as error:
            raise CacheError(
                f"the engine {self.plan} cannot be opened ({error}): another process may have "
                "removed it. Run again, and it is built again"
            ) from error


@dataclass(frozen=True)
class Opened:
    """Whatever lies in an entry's place, kept from being confused with what comes there later."""

    path: Path
    descriptor: int
    identity: tuple[int, int]

    def read(self) -> Entry:
        """Return the entry, held, with the length and checksum that it was written with.

        Raises:
            Damaged: it has not.
            FileNotFoundError: it was removed or replaced before it could be held.
            OtherFormat: it is of another release.
            OSError: it could not be looked at.
        """
        with _faults():
            manifest = self._manifest()
            held = Hold(open_file(PLAN, self.descriptor))
        try:
            # Only from now on it cannot be removed: it may have been, between opening and holding.
            if identity_of(self.path) != self.identity:
                raise FileNotFoundError(errno.ENOENT, "it was just removed", str(self.path))
            with _faults():
                if held.size != manifest["plan_bytes"]:
                    raise Damaged(f"{held.size} bytes instead of {manifest['plan_bytes']}")
                if held.digest() != manifest["plan_digest"]:
                    raise Damaged("the checksum of the plan differs")
            return Entry(self.path.name, self.path, manifest, held)
        except BaseException:
            held.close()
            raise

    def read_manifest(self) -> dict[str, Any]:
        """Return the manifest, with the checksum that it was written with; raises as `read`."""
        with _faults():
            return self._manifest()

    def _manifest(self) -> dict[str, Any]:
        mode = os.fstat(self.descriptor).st_mode
        if not stat.S_ISDIR(mode):
            raise Damaged("it is a link" if stat.S_ISLNK(mode) else "it is not a folder")
        with open(open_file(MANIFEST, self.descriptor), "rb") as file:
            manifest: dict[str, Any] = json.loads(file.read())
        if manifest.pop("manifest_digest") != seal_of(manifest):
            raise Damaged("the checksum of the manifest differs")
        if manifest["format"] != FORMAT:
            raise OtherFormat(f"{self.path} has format {manifest['format']} instead of {FORMAT}")
        if manifest["digest"] != self.path.name:
            raise Damaged(f"the entry is for {manifest['digest']}")
        return manifest


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open whatever lies at a path, without following a link or waiting for a pipe.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        yield Opened(path, descriptor, (status.st_dev, status.st_ino))
    finally:
        os.close(descriptor)


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from one that took its name; None where nothing is."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def open_file(path: str | Path, folder: int | None = None) -> int:
    """Open a regular file to read.

    Raises:
        OSError: it cannot be opened, or is a link.
        Damaged: it is no file.
    """
    descriptor = os.open(path, _FLAGS, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Damaged(f"{Path(path).name} is not a file")
    return descriptor


def seal_of(manifest: dict[str, Any]) -> str:
    """Return the digest of a manifest. All formats have this one, so that each knows the others."""
    return blake3.blake3(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


@contextmanager
def _faults() -> Iterator[None]:
    """Tell what is wrong with an entry from what is wrong with the machine."""
    try:
        yield
    except OSError as error:
        if error.errno in _DAMAGE:
            raise Damaged(str(error)) from error
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
