"""Engines on disk: one folder an engine, named by the digest of what it was built from.

The store knows nothing of keys' meaning. An entry is written whole under a temporary name and
renamed, guarded by a lock per digest, and checked by its own checksum when it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import filelock
import platformdirs

from singlecard.errors import CacheError

FORMAT = 1
PLAN, MANIFEST = "engine.plan", "manifest.json"

#: Names that this store gives. Whatever else lies in the folder is somebody else's: never touched.
_ENTRY = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"[0-9a-f]{64}(\.damaged|\.lock|\.placement)?|[0-9a-f]{16}\..+\.tmp")


def default_folder() -> Path:
    """Return the cache folder: ``SINGLECARD_CACHE``, or the user's own cache folder."""
    given = os.environ.get("SINGLECARD_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("singlecard"))


@dataclass(frozen=True)
class Entry:
    """A built engine on disk."""

    digest: str
    folder: Path
    manifest: dict[str, Any]

    @property
    def plan(self) -> Path:
        return self.folder / PLAN

    @property
    def size(self) -> int:
        return int(self.manifest["plan_bytes"])


def file_digest(path: Path) -> str:
    """Return the BLAKE3 digest of a file, read at memory speed."""
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    hasher.update_mmap(path)
    return hasher.hexdigest()


class Cache:
    """The engines of one user in one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def open(self) -> None:
        """Make the folder, private to the user.

        Raises:
            CacheError: it cannot be made or written, or somebody else could write to it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        self._check()
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise self._unusable("it is not writable")

    def _check(self) -> None:
        """Refuse a folder that somebody else could put engines into."""
        try:
            status = self.folder.stat()
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        if not stat.S_ISDIR(status.st_mode):
            raise self._unusable("it is not a folder")
        if status.st_uid not in (os.getuid(), 0):
            raise self._unusable("it belongs to another user, who could replace engines")
        if status.st_mode & stat.S_IWOTH:
            raise self._unusable("everybody may write to it: run 'chmod o-w' on it")

    def _unusable(self, why: str) -> CacheError:
        return CacheError(
            f"the engine cache {self.folder} cannot be used: {why}. "
            "Choose another folder with the option cache_dir or SINGLECARD_CACHE"
        )

    def path(self, digest: str) -> Path:
        return self.folder / digest

    def find(self, digest: str) -> Entry | None:
        """Return an entry whose plan has the length and checksum that it was written with.

        A damaged entry is set aside under ``<digest>.damaged``, and counts as missing.
        """
        folder = self.path(digest)
        if not os.path.lexists(folder):
            return None
        self._check()
        try:
            entry = self._read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._set_aside(folder, str(error))
            return None
        with contextlib.suppress(OSError):  # a cache baked into an image may be read-only
            os.utime(folder)
        return entry

    def _read(self, folder: Path) -> Entry:
        manifest = self._manifest(folder)
        plan = folder / PLAN
        if plan.stat().st_size != manifest["plan_bytes"]:
            raise ValueError(f"{plan.stat().st_size} bytes instead of {manifest['plan_bytes']}")
        if file_digest(plan) != manifest["plan_digest"]:
            raise ValueError("the checksum of the plan differs")
        return Entry(folder.name, folder, manifest)

    def _manifest(self, folder: Path) -> dict[str, Any]:
        if folder.is_symlink():
            raise ValueError("it is a link")
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']} instead of {FORMAT}")
        if manifest["digest"] != folder.name:
            raise ValueError(f"the entry is for {manifest['digest']}")
        if manifest.pop("manifest_digest") != _manifest_digest(manifest):
            raise ValueError("the checksum of the manifest differs")
        return manifest

    def _set_aside(self, folder: Path, why: str) -> None:
        aside = folder.with_name(f"{folder.name}.damaged")
        _discard(aside)
        try:
            folder.rename(aside)
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            raise CacheError(
                f"the cache entry {folder} is damaged ({why}) and cannot be set aside "
                f"({error}): remove it by hand"
            ) from error

    @contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the right to build one engine; others wait. The system frees a dead one's lock."""
        self.open()
        path = self.folder / f"{digest}.lock"
        with filelock.FileLock(path, mode=0o600):
            yield

    def store(self, digest: str, write: Callable[[Path], dict[str, Any]]) -> Entry:
        """Let ``write`` fill a temporary folder with a plan, then make it the entry of ``digest``.

        ``write`` returns what the manifest shall say beside sizes and checksums. Nothing is left
        behind where it raises.
        """
        self.open()
        try:
            temporary = Path(
                tempfile.mkdtemp(prefix=f"{digest[:16]}.", suffix=".tmp", dir=self.folder)
            )
        except OSError as error:
            raise self._unusable(error.strerror or str(error)) from error
        try:
            facts = write(temporary)
            plan = temporary / PLAN
            _sync(plan)
            manifest: dict[str, Any] = facts | {
                "format": FORMAT,
                "digest": digest,
                "created": time.time(),
                "plan_bytes": plan.stat().st_size,
                "plan_digest": file_digest(plan),
            }
            manifest = json.loads(json.dumps(manifest))  # as it will be read
            sealed = manifest | {"manifest_digest": _manifest_digest(manifest)}
            (temporary / MANIFEST).write_text(json.dumps(sealed, indent=1))
            _sync(temporary / MANIFEST)
            _sync(temporary)
            target = self.path(digest)
            _discard(target)
            temporary.rename(target)
            _sync(self.folder)
            return Entry(digest, target, manifest)
        except OSError as error:
            raise CacheError(
                f"an engine could not be written to {self.folder}: {error}. Free some space, or "
                "choose another folder with the option cache_dir or SINGLECARD_CACHE"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def entries(self) -> list[Entry]:
        """Return all whole entries, newest use first; damaged ones are left alone."""
        found = []
        for folder in self._folders():
            try:
                entry = Entry(folder.name, folder, self._manifest(folder))
                found.append((folder.stat().st_mtime, entry))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return [entry for _, entry in sorted(found, key=lambda item: -item[0])]

    def _folders(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [
            path for path in self.folder.iterdir() if _ENTRY.fullmatch(path.name) and path.is_dir()
        ]

    def verify(self) -> dict[str, str | None]:
        """Check every entry; return for each digest None, or what is wrong with it."""
        result: dict[str, str | None] = {}
        for folder in sorted(self._folders()):
            try:
                self._read(folder)
                result[folder.name] = None
            except (OSError, ValueError, KeyError, TypeError) as error:
                result[folder.name] = str(error)
        return result

    def remove(self, digest: str) -> None:
        shutil.rmtree(self.path(digest), ignore_errors=True)
        (self.folder / f"{digest}.lock").unlink(missing_ok=True)

    def prune(self, limit_bytes: int) -> list[Entry]:
        """Remove the least recently used engines until the rest fits; return what was removed."""
        kept, removed = 0, []
        for entry in self.entries():
            if kept + entry.size > limit_bytes:
                self.remove(entry.digest)
                removed.append(entry)
            else:
                kept += entry.size
        return removed

    def clear(self) -> int:
        """Remove every entry, whole or damaged; return how many there were."""
        count = 0
        if self.folder.is_dir():
            for path in list(self.folder.iterdir()):
                if _OURS.fullmatch(path.name):
                    count += path.is_dir()
                    _discard(path)
        return count


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return blake3.blake3(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _discard(path: Path) -> None:
    """Remove a folder, a file or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
