"""What was used last, and what goes first.

The time of an entry's last use is its folder's modification time. The clock only suggests it: a
use is always later than all uses before it, so a clock that was set back makes nothing old, and one
that was ahead for a while keeps nothing for ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from singlecard.engine.entry import PLAN
from singlecard.engine.locking import Unsupported, lock_descriptor

#: Nanoseconds between two uses, where the clock does not tell them apart.
_STEP = 1_000_000

#: What opening a plan answers where there is none, or something else in its place.
_NO_PLAN = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO}


def last_use(path: Path) -> int:
    """Return the time of an entry's last use in nanoseconds."""
    return os.lstat(path).st_mtime_ns


def note_use(path: Path, others: Iterable[Path]) -> None:
    """Make an entry the last used one. A folder that cannot be written to keeps no such notes."""
    with contextlib.suppress(OSError):
        newest = 0
        for other in others:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                newest = max(newest, last_use(other))
        stamp = max(time.time_ns(), newest + _STEP)
        os.utime(path, ns=(stamp, stamp), follow_symlinks=False)


@contextmanager
def removable(path: Path, when_unknown: bool) -> Iterator[bool]:
    """Tell whether no process holds an entry; none can begin to before this ends.

    Args:
        path: the entry's folder.
        when_unknown: the answer where the file system has no locks.
    """
    try:
        # NFS locks a file exclusively only where it is open for writing.
        descriptor = os.open(path / PLAN, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        yield error.errno in _NO_PLAN  # where there is none, nobody holds it
        return
    try:
        try:
            free = lock_descriptor(descriptor)
        except Unsupported:
            free = when_unknown
        yield free
    finally:
        os.close(descriptor)


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a folder's files, or of a file."""
    if not path.is_dir():
        with contextlib.suppress(OSError):
            return os.lstat(path).st_size
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
