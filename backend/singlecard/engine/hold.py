"""A file that stays on disk while somebody uses it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from singlecard.engine.locking import Unsupported, is_at, lock_descriptor
from singlecard.hashing import hasher_for

#: Bytes that are read at a time: as fast as a memory map, and a bad disk raises instead of killing
#: the process (SIGBUS).
_PIECE = 4 << 20


class Hold:
    """An open file under a shared lock, which no process's cache removes.

    It ends with `close`, with the last reference to it, or with the process. The content can be
    read even where somebody removes the file by hand.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over an open file.

        Somebody may be about to remove it, or have removed it: `is_at` tells, and holds from then
        on. That takes moments, so it is waited for.
        """
        self._descriptor: int | None = descriptor
        try:
            lock_descriptor(descriptor, shared=True, wait=True)
        except Unsupported:
            pass
        except BaseException:
            self.close()
            raise

    @property
    def descriptor(self) -> int:
        """The open file; valid until `close`."""
        if self._descriptor is None:
            raise ValueError("the hold is closed")
        return self._descriptor

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def is_at(self, path: Path) -> bool:
        """Tell whether this is the file that a path names now."""
        return is_at(self.descriptor, path)

    def share(self) -> Hold:
        """Return another hold of the same file, which lasts as long as it is itself not closed."""
        return Hold(os.dup(self.descriptor))

    def map(self) -> mmap.mmap:
        """Return the content as a read-only memory map, which outlives the hold."""
        return mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)

    def digest(self) -> str:
        """Return the BLAKE3 digest of the content, read at memory speed."""
        return _digest(self.descriptor)

    def close(self) -> None:
        """Let go; closing twice does nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def file_digest(path: Path) -> str:
    """Return the BLAKE3 digest of a file, read at memory speed."""
    with open(path, "rb", buffering=0) as file:
        return _digest(file.fileno())


def _digest(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    hasher, piece = hasher_for(size), memoryview(bytearray(min(_PIECE, size) or 1))
    place = 0
    while count := os.preadv(descriptor, [piece], place):
        hasher.update(piece[:count])
        place += count
    return hasher.hexdigest()
