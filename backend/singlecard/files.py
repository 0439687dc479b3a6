"""One way to open what others may have put there: regular files, bounded, never waited for."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

#: Opening a pipe waits for its other end, which may never come.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

#: Bytes of what people write, such as a table or a build file.
MOST_TEXT = 1 << 28

#: Bytes of what is kept beside engines, such as a memo or kernels for a card.
MOST_KEPT = 1 << 30


def open_regular(path: str | os.PathLike[str], *, private: bool = False) -> int:
    """Open a regular file to be read; return its descriptor.

    Args:
        path: the file.
        private: whether it is one of our own: no link is followed, and it must belong to this user
            (or to root) and not be open to all. A group that may write was let into the folder.

    Raises:
        OSError: it cannot be opened, or is something else; nothing of it is read.
    """
    try:
        descriptor = os.open(path, _FLAGS | (os.O_NOFOLLOW if private else 0))
    except ValueError as error:  # a zero in a path
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    status = os.fstat(descriptor)
    problem = _problem(status, private)
    if problem:
        os.close(descriptor)
        raise OSError(errno.EPERM, problem, str(path))
    return descriptor


def _problem(status: os.stat_result, private: bool) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"
    if not private:
        return ""
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to another user ({status.st_uid})"
    if status.st_mode & stat.S_IWOTH:
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def read_file(path: str | os.PathLike[str], most: int, *, private: bool = False) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        most: bytes that it may have.
        private: see `open_regular`.

    Raises:
        OSError: it cannot be read, is something else, or has more bytes.
    """
    with os.fdopen(open_regular(path, private=private), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes", str(Path(path)))
    return content
