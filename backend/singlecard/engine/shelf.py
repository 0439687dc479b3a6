"""One folder of entries, and all that happens to them there.

What lies under an entry's name is whole or damaged, never half: it is made under a scratch name and
renamed, and taken away by a rename too. The renames stand under one lock for the folder, which is
held for moments; building stands under a lock for each digest. Where a file system has no locks, an
engine may be built twice, and nothing else changes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singlecard.engine.entry import (
    FORMAT,
    MANIFEST,
    PLAN,
    Damaged,
    Entry,
    OtherFormat,
    identity_of,
    open_file,
    opened,
    seal_of,
)
from singlecard.engine.eviction import bytes_on_disk, last_use, note_use, removable
from singlecard.engine.hold import Hold
from singlecard.engine.locking import take, try_take
from singlecard.engine.scratch import remove_tree, scratch, sweep
from singlecard.errors import CacheError
from singlecard.observe import events

log = logging.getLogger("singlecard.cache")

#: Names that are given here. Whatever else lies in the folder is somebody else's: never touched.
_ENTRY = re.compile(r"[0-9a-f]{64}")
_DAMAGED = re.compile(r"[0-9a-f]{64}\.damaged")
_MEMORY = re.compile(r"[0-9a-f]{64}\.memory\.v[0-9]+")
#: What was found out on a card: timings of kernels, and kernels of engines in artifacts.
_OF_CARD = re.compile(
    r"(?:timings|kernels\.[0-9a-f]{64})\.[a-z0-9-]*\.cuda[0-9]+\.[0-9A-Za-z.+-]+\.bin"
)
_STEM = re.compile(rf"[0-9a-f]{{64}}|[0-9a-f]{{16}}\.[0-9a-f]{{16}}|names|{_OF_CARD.pattern}")

#: Times to look again at an entry that others replace while it is read.
_ATTEMPTS = 8

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


class StoreError(CacheError):
    """An engine could not be written; the cache is as it was before."""


@dataclass(frozen=True)
class Lookup:
    """What came of looking for an engine: the entry, or the reason why there is none.

    Attributes:
        entry: the entry, held, or None.
        reason: why there is none; empty where there is one.
        other_format: whether another release's entry has the place.
    """

    entry: Entry | None
    reason: str = ""
    other_format: bool = False


class Shelf:
    """Entries of this release's format in one folder, which need not be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / digest

    def look(self, digest: str) -> Lookup:
        """Look for an entry. One that is damaged is set aside, and counts as missing."""
        path = self.path(digest)
        for _ in range(_ATTEMPTS):
            try:
                with opened(path) as place:
                    try:
                        entry = place.read()
                    except Damaged as error:
                        reason = f"{path} is damaged: {error}"
                        if not self._set_aside(path, place.identity, reason):
                            continue  # it was replaced while it was read
                        return Lookup(None, reason)
            except FileNotFoundError:
                if os.path.lexists(path):
                    continue
                return Lookup(None, f"{path} is not there")
            except OtherFormat as error:
                return Lookup(None, f"{error}: another release of singlecard wrote it", True)
            except OSError as error:
                log.info("%s cannot be read and is left alone: %s", path, error)
                return Lookup(None, f"{path} cannot be read: {error}")
            if os.access(self.folder, os.W_OK):
                note_use(path, self._named(_ENTRY))
            return Lookup(entry)
        return Lookup(None, f"{path} is replaced all the time")

    def _set_aside(self, path: Path, identity: tuple[int, int], reason: str) -> bool:
        """Rename a damaged entry to ``<digest>.damaged``; return whether it still was that one."""
        aside = path.with_name(f"{path.name}.damaged")
        try:
            with scratch(self.folder, path.name[:16]) as trash, self._names():
                if identity_of(path) != identity:
                    return False
                if os.path.lexists(aside):
                    aside.rename(trash)
                path.rename(aside)
        except OSError as error:
            log.info("%s; it cannot be set aside: %s", reason, error)
        else:
            events.record_damaged(path.name, f"{reason}; set aside as {aside.name}")
        return True

    @contextmanager
    def _names(self) -> Iterator[None]:
        """Hold the right to change what an entry's name stands for."""
        lock = take(self.folder / "names.lock")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def lock(self, digest: str) -> Iterator[None]:
        """Hold the right to build one engine; others wait. The system frees a dead one's lock.

        Raises:
            StoreError: the lock cannot be made.
        """
        path = self.folder / f"{digest}.lock"
        try:
            lock = try_take(path)
            if lock is None:
                log.info("waiting for whoever holds %s", path)
                lock = take(path)
        except OSError as error:
            raise self._not_stored(error) from error
        try:
            yield
        finally:
            lock.release()

    def store(self, digest: str, write: Callable[[Path], dict[str, Any]]) -> Entry:
        """Let ``write`` fill a temporary folder, then make it the entry of ``digest``.

        Raises:
            StoreError: it could not be written. Nothing is left behind, nor where ``write`` raises.
        """
        try:
            with scratch(self.folder, digest[:16]) as temporary:
                temporary.mkdir(mode=0o700)
                manifest = self._seal(temporary, digest, write(temporary))
                held = Hold(open_file(temporary / PLAN))
                entry = Entry(digest, self.path(digest), manifest, held)
                stored = self._put(temporary, entry)
            note_use(stored.folder, self._named(_ENTRY))
            return stored
        except OSError as error:
            if isinstance(error, CacheError):
                raise
            raise self._not_stored(error) from error

    def _seal(self, folder: Path, digest: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest beside the plan, and have both on the disk."""
        _sync(folder / PLAN)
        with Hold(open_file(folder / PLAN)) as plan:
            plan_facts = {"plan_bytes": plan.size, "plan_digest": plan.digest()}
        named = {"format": FORMAT, "digest": digest, "created": time.time()}
        manifest: dict[str, Any] = json.loads(json.dumps(facts | named | plan_facts))  # as read
        sealed = manifest | {"manifest_digest": seal_of(manifest)}
        (folder / MANIFEST).write_text(json.dumps(sealed, indent=1))
        _sync(folder / MANIFEST)
        _sync_names(folder)
        return manifest

    def _put(self, temporary: Path, entry: Entry) -> Entry:
        """Give a finished folder its name; return what has the name then.

        A whole entry that others put there meanwhile stays, and is returned. What is no whole entry
        makes way.
        """
        for _ in range(_ATTEMPTS):
            try:
                with self._names():
                    temporary.rename(entry.folder)
                _sync_names(self.folder)
                return entry
            except FileNotFoundError:
                # A rename over a network may succeed and, asked again, find nothing to rename.
                pass
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            present = self.look(entry.digest)
            if present.entry is not None:
                return present.entry
            if not temporary.exists():
                break
        raise StoreError(
            f"an engine could not be stored as {entry.folder} ({present.reason}): remove what is "
            "there by hand, or choose another folder with the option cache_dir or SINGLECARD_CACHE"
        )

    def _not_stored(self, error: OSError) -> StoreError:
        return StoreError(
            f"an engine could not be written to {self.folder}: {error}. Free some space, or "
            "choose another folder with the option cache_dir or SINGLECARD_CACHE"
        )

    def entries(self) -> list[Entry]:
        """Return all entries with a whole manifest, newest use first."""
        return [entry for _, entry in self._used()]

    def _used(self) -> list[tuple[int, Entry]]:
        """Return entries with the times of their last use, newest first."""
        found = []
        for path in self._named(_ENTRY):
            with contextlib.suppress(OSError, Damaged, OtherFormat), opened(path) as place:
                used = last_use(path)
                found.append((used, Entry(path.name, path, place.read_manifest())))
        return sorted(found, key=lambda item: -item[0])

    def verify(self) -> dict[str, str | None]:
        """Check every entry; return for each digest None, or what is wrong with it."""
        result: dict[str, str | None] = {}
        for path in sorted(self._named(_ENTRY)):
            try:
                with opened(path) as place:
                    place.read()
                result[path.name] = None
            except FileNotFoundError:  # removed meanwhile
                continue
            except OtherFormat as error:
                log.info("%s: another release of singlecard wrote it", error)
            except (OSError, Damaged) as error:
                result[path.name] = str(error)
        return result

    def remove(self, path: Path, *, asked: bool, used: int | None = None) -> bool:
        """Remove an entry, unless a process holds it; return whether it is gone.

        Args:
            path: what to remove.
            asked: whether the user asked for it; it is removed then even where the file system
                cannot tell whether a process holds it.
            used: its last use when it was chosen; it stays where it was used since.
        """
        if not os.path.lexists(path):
            return True
        try:
            with scratch(self.folder, path.name[:16]) as trash, self._names():
                with removable(path, when_unknown=asked) as free:
                    if not free or (used is not None and last_use(path) != used):
                        return False
                    path.rename(trash)
        except FileNotFoundError:  # somebody else was faster
            return True
        return True

    def evict(
        self, limit_bytes: int, *, asked: bool = False, keep: Collection[str] = ()
    ) -> list[Entry]:
        """Remove damaged entries, then what was not used for longest, until the rest fits.

        Returns:
            the whole entries that were removed.
        """
        entries = [(used, entry, _weight(entry)) for used, entry in self._used()]
        aside = [(path, bytes_on_disk(path)) for path in self._named(_DAMAGED)]
        total = sum(size for *_, size in entries) + sum(size for _, size in aside)
        for path, size in aside:
            if total > limit_bytes and self.remove(path, asked=asked):
                total -= size
        removed = []
        for used, entry, size in reversed(entries):
            if total <= limit_bytes:
                break
            if entry.digest in keep or not self.remove(entry.folder, asked=asked, used=used):
                continue
            if not asked:
                events.record_evicted(entry.digest, entry.size)
            removed.append(entry)
            total -= size
        return removed

    def clear(self) -> int:
        """Remove every entry, whole or damaged, and all that is kept beside them.

        What a process holds stays, and so do other releases' entries.

        Returns:
            how many entries were removed.
        """
        count = 0
        for path in [*self._named(_ENTRY), *self._named(_DAMAGED)]:
            if not self.is_other_format(path):
                count += self.remove(path, asked=True)
        for path in [*self._named(_MEMORY), *self._named(_OF_CARD)]:
            remove_tree(path)
        sweep(self.folder, _STEM, asked=True)
        return count

    def is_other_format(self, path: Path) -> bool:
        """Tell whether another release has put a whole entry there."""
        try:
            with opened(path) as place:
                place.read_manifest()
        except OtherFormat:
            return True
        except (OSError, Damaged):
            pass
        return False

    def sweep(self) -> int:
        """Remove what dead processes left unfinished; return how much there was."""
        return sweep(self.folder, _STEM)

    def _named(self, pattern: re.Pattern[str]) -> list[Path]:
        """Return what lies in the folder under names of one kind; nothing where it is missing."""
        try:
            return [
                self.folder / name for name in os.listdir(self.folder) if pattern.fullmatch(name)
            ]
        except OSError:
            return []


def _sync(path: Path) -> None:
    """Have a file's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_names(folder: Path) -> None:
    """Have a folder's list of names on the disk, where the file system can be asked for that."""
    with contextlib.suppress(OSError):
        _sync(folder)


def _weight(entry: Entry) -> int:
    """Return what counts of an entry: its plan, and the kernels that were compiled for it."""
    kernels = (bytes_on_disk(path) for path in entry.folder.glob("kernels.*.bin"))
    return entry.size + sum(kernels)
