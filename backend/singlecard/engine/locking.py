"""Locks between processes: freed by the system when their holder dies, gone from the disk with it.

A lock is ``flock`` on a file of its own. Whoever frees it removes the file first, so whoever gets
it looks whether the file is still the one at that path, and tries again where it is not. A file
system without ``flock`` gives locks that lock nothing: `Lock.real` tells.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import weakref
from pathlib import Path

#: What a file system without locks answers.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Unsupported(OSError):
    """The file system has no locks."""


def lock_descriptor(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; return False where somebody else has it and we do not wait.

    Raises:
        Unsupported: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise Unsupported(error.errno, error.strerror) from error
        raise
    return True


class Lock:
    """The lock on one path, held until `release`, or until the process dies."""

    def __init__(self, path: Path, descriptor: int, real: bool) -> None:
        self.path, self.real = path, real
        self._descriptor: int | None = descriptor
        _held.add(self)

    def release(self) -> None:
        """Remove the file and free the lock, in this order."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with contextlib.suppress(OSError):
            if is_at(descriptor, self.path):
                self.path.unlink()
        if self.real:
            with contextlib.suppress(OSError):  # a forked child may have the descriptor too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def _forget(self) -> None:
        """Let go of what a fork gave us too: the lock is the parent's, and ends with the parent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def take(path: Path) -> Lock:
    """Wait for the lock on a path; its folder is made where somebody has just removed it."""
    lock = None
    while lock is None:
        try:
            lock = _attempt(path, wait=True)
        except FileNotFoundError:
            path.parent.mkdir(mode=0o700, exist_ok=True)
    return lock


def try_take(path: Path) -> Lock | None:
    """Return the lock on a path, or None where somebody holds it."""
    return _attempt(path, wait=False)


def _attempt(path: Path, wait: bool) -> Lock | None:
    descriptor = os.open(path, _OPEN, 0o600)
    try:
        real = True
        try:
            taken = lock_descriptor(descriptor, wait=wait)
        except Unsupported:
            real, taken = False, True
        if taken and is_at(descriptor, path):
            return Lock(path, descriptor, real)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_at(descriptor: int, path: Path) -> bool:
    """Tell whether an open file is the one that a path names now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_after_fork)
