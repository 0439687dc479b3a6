"""Engines on disk: one folder an engine, named by the digest of what it was built from.

The cache knows nothing of keys' meaning. What it promises, whatever dies when, stands in
``docs/cache.md``. The work in the folder is `singlecard.engine.shelf`'s; here is which folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from singlecard.engine.entry import FORMAT, MANIFEST, PLAN, Entry
from singlecard.engine.hold import Hold, file_digest
from singlecard.engine.private import private_folder
from singlecard.engine.shelf import Lookup, Shelf, StoreError
from singlecard.errors import CacheError, OptionError
from singlecard.sizes import bytes_from_text
from singlecard.warning import warn_once

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PLAN",
    "Cache",
    "Entry",
    "Hold",
    "Lookup",
    "StoreError",
    "file_digest",
]

log = logging.getLogger("singlecard.cache")

#: Below the cache folder, so that releases with different formats never meet.
ENGINES = f"engines.v{FORMAT}"

_CHOOSE = "Choose another folder with the option cache_dir or SINGLECARD_CACHE"


def default_folder() -> Path:
    """Return the cache folder: ``SINGLECARD_CACHE``, or the user's own cache folder."""
    given = os.environ.get("SINGLECARD_CACHE")
    return Path(given).expanduser() if given else Path(platformdirs.user_cache_dir("singlecard"))


def default_limit() -> int | None:
    """Return the bytes in ``SINGLECARD_CACHE_LIMIT``, such as ``20GB``; None where it is not set.

    Raises:
        OptionError: it is no size.
    """
    given = os.environ.get("SINGLECARD_CACHE_LIMIT")
    if not given:
        return None
    try:
        return bytes_from_text(given)
    except ValueError as error:
        raise OptionError(f"SINGLECARD_CACHE_LIMIT: {error}") from error


class _Unwritable(CacheError):
    """The folder is in order, and this process may not write to it."""


class Cache:
    """The engines of one user in one folder."""

    def __init__(
        self,
        folder: Path | None = None,
        limit_bytes: int | None = None,
        *,
        fallback: bool = True,
    ) -> None:
        """Name a cache; nothing is made before something is stored.

        Args:
            folder: None: `default_folder`.
            limit_bytes: what plans may take; beyond it, `store` removes what was not used for
                longest, but nothing that a process holds. None: `default_limit`.
            fallback: build into a temporary folder of this process, with one warning, where the
                folder cannot be written to. Without it that is a `CacheError`.

        Raises:
            OptionError: ``SINGLECARD_CACHE_LIMIT`` is no size.
        """
        self.folder = folder or default_folder()
        self.limit_bytes = default_limit() if limit_bytes is None else limit_bytes
        self.fallback = fallback
        self.shelf = Shelf(self.folder / ENGINES)

    def open(self) -> None:
        """Make the folder, private to the user, and remove what dead processes left in it.

        Raises:
            CacheError: it cannot be made or written, or somebody else could write to it.
        """
        for folder in (self.folder, self.engines):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                raise self._failed(folder, error) from error
            self._check(folder)
        # Another process may clear the cache just now: what is put there next makes it again.
        if self.engines.exists() and not os.access(self.engines, os.W_OK | os.X_OK):
            raise self._unusable(self.engines, "it is not writable", _Unwritable)
        self.shelf.sweep()

    def _check(self, folder: Path) -> None:
        """Refuse a folder that somebody else could put engines into."""
        try:
            status = folder.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(folder, error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise self._unusable(folder, "it is not a folder")
        if status.st_uid not in (os.getuid(), 0):
            raise self._unusable(folder, "it belongs to another user, who could replace engines")
        if status.st_mode & stat.S_IWOTH:
            raise self._unusable(folder, "everybody may write to it: run 'chmod o-w' on it")

    def _failed(self, folder: Path, error: OSError) -> CacheError:
        kind: type[CacheError] = CacheError
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            kind = _Unwritable
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind = StoreError
        return self._unusable(folder, error.strerror or str(error), kind)

    def _unusable(self, folder: Path, why: str, kind: type[CacheError] = CacheError) -> CacheError:
        return kind(f"the engine cache {folder} cannot be used: {why}. {_CHOOSE}")

    @property
    def engines(self) -> Path:
        """The folder below `folder` that entries of this release's format lie in."""
        return self.shelf.folder

    def path(self, digest: str) -> Path:
        """Return where the entry of a digest is, or would be."""
        return self.shelf.path(digest)

    def find(self, digest: str) -> Entry | None:
        """Return an entry whose plan has the length and checksum that it was written with.

        A damaged entry is set aside under ``<digest>.damaged``, and counts as missing.

        Raises:
            CacheError: something is there, and somebody else could have put it there.
        """
        return self.look(digest).entry

    def look(self, digest: str) -> Lookup:
        """Do what `find` does, and tell the reason where there is no entry."""
        found = Lookup(None, f"{self.path(digest)} is not there")
        if os.path.lexists(self.path(digest)):
            self._check(self.folder)
            self._check(self.engines)
            found = self.shelf.look(digest)
        private = private_folder(self.folder, make=False)
        if found.entry is None and private is not None:
            elsewhere = Shelf(private).look(digest)
            found = elsewhere if elsewhere.entry is not None else found
        log.debug("%s: %s", digest, found.reason or "found")
        return found

    @contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the right to build one engine; others wait. The system frees a dead one's lock.

        Raises:
            CacheError: the folder cannot be used.
            StoreError: the disk is full.
        """
        with self._writable(digest).lock(digest):
            yield

    def store(self, digest: str, write: Callable[[Path], dict[str, Any]]) -> Entry:
        """Let ``write`` fill a temporary folder with a plan, then make it the entry of ``digest``.

        ``write`` returns what the manifest shall say beside sizes and checksums. Nothing is left
        behind where it raises. A whole entry that is there already stays, and is returned.

        Raises:
            CacheError: the folder cannot be used.
            StoreError: the entry could not be written, because the disk is full for one.
        """
        shelf = self._writable(digest)
        entry = shelf.store(digest, write)
        if self.limit_bytes is not None and shelf is self.shelf:
            with contextlib.suppress(OSError):
                shelf.evict(self.limit_bytes, keep={digest})
        return entry

    def _writable(self, digest: str) -> Shelf:
        """Return where an engine can be put: our folder, or one of this process alone."""
        try:
            self.open()
            if self.shelf.is_other_format(self.path(digest)):
                why = "another release of singlecard has put an entry of its own format there"
                raise self._unusable(self.path(digest), why, _Unwritable)
            return self.shelf
        except _Unwritable as error:
            if not self.fallback:
                raise
            warn_once(
                f"{error}. Until then, engines are built for this process alone, in a temporary "
                "folder that ends with it"
            )
        private = private_folder(self.folder, make=True)
        assert private is not None
        return Shelf(private)

    def entries(self) -> list[Entry]:
        """Return all entries with a whole manifest, newest use first; none of them is held."""
        return self.shelf.entries()

    def verify(self) -> dict[str, str | None]:
        """Check every entry; return for each digest None, or what is wrong with it.

        Entries that another release wrote in a format of its own are left out.
        """
        return self.shelf.verify()

    def remove(self, digest: str) -> bool:
        """Remove an entry, unless a process holds it; return whether it is gone."""
        return self.shelf.remove(self.path(digest), asked=True)

    def prune(self, limit_bytes: int) -> list[Entry]:
        """Remove damaged entries and the least recently used engines until the rest fits.

        What a process holds stays.

        Returns:
            the engines that were removed.
        """
        return self.shelf.evict(limit_bytes, asked=True)

    def clear(self) -> int:
        """Remove every entry, whole or damaged, that no process holds; return how many."""
        count = self.shelf.clear()
        with contextlib.suppress(OSError):
            self.engines.rmdir()
        return count

    def sweep(self) -> int:
        """Remove what dead processes left unfinished; return how much there was."""
        return self.shelf.sweep()
