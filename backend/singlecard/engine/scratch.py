"""Names for what is being made or taken away, which nobody takes for an entry, alive or dead.

A name ``<stem>.tmp`` has a lock ``<stem>.lock`` that its maker holds from before the name is used
until nothing is left under it. So whoever gets that lock knows that the maker is dead, whatever the
clock and the process numbers say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from singlecard.engine.locking import take, try_take

log = logging.getLogger("singlecard.cache")


@contextmanager
def scratch(folder: Path, prefix: str) -> Iterator[Path]:
    """Reserve a path in a folder; what is still there at the end is removed."""
    stem = f"{prefix}.{secrets.token_hex(8)}"
    lock = take(folder / f"{stem}.lock")
    path = folder / f"{stem}.tmp"
    try:
        yield path
    finally:
        remove_tree(path)
        lock.release()


def sweep(folder: Path, pattern: re.Pattern[str], *, asked: bool = False) -> int:
    """Remove what dead processes left; return how many names there were.

    Args:
        folder: where to look.
        pattern: matches the stem of every name that is ours, and no other.
        asked: whether the user asked for it: where the file system has no locks, and the dead look
            like the living, nothing is removed otherwise.
    """
    count = 0
    for stem in {name.stem for name in _leftovers(folder) if pattern.fullmatch(name.stem)}:
        try:
            lock = try_take(folder / f"{stem}.lock")
        except OSError:  # a folder that cannot be written to, or a file that is not ours
            continue
        if lock is None:
            continue
        try:
            if lock.real or asked:
                count += os.path.lexists(folder / f"{stem}.tmp")
                remove_tree(folder / f"{stem}.tmp")
        finally:
            lock.release()
    if count:
        log.info("removed %d unfinished files of dead processes from %s", count, folder)
    return count


def _leftovers(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as items:
            return [Path(item.name) for item in items if item.name.endswith((".tmp", ".lock"))]
    except OSError:
        return []


def remove_tree(path: Path) -> None:
    """Remove a folder, a file or a link, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
