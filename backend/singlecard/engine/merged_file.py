"""A file that several processes add to, none of which loses what another added.

Whoever writes has the lock, and adds its own to what is there then. A file that is damaged counts
as missing, and is replaced. What it holds costs time to make again and nothing else, so that
nothing here is an error for whoever uses it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import blake3

from singlecard.engine.locking import take
from singlecard.files import MOST_KEPT, read_file

_DIGEST = 32

#: Locks that a thread holds. What Python's garbage collector ends in the middle of a merge, such as
#: an engine, may want to add to the same file: it would wait for its own thread.
_mine = threading.local()


def name_for_card(kind: str, card: str, driver: int, version: str) -> str:
    """Return the file name for a model of card, a driver's major version, and a TensorRT."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower()
    return f"{kind}.{plain}.cuda{driver}.{version}.bin"


class MergedFile:
    """One such file."""

    def __init__(self, path: Path, magic: bytes, what: str, log: logging.Logger) -> None:
        """Name a file, which need not be there.

        Args:
            path: the file.
            magic: its first bytes, which tell what it is; its content's digest follows them.
            what: its content in words, for the log.
            log: is told what goes wrong.
        """
        self.path, self._magic, self._what, self._log = path, magic, what, log

    def read(self) -> bytes:
        """Return the content; nothing where it is missing or damaged."""
        try:
            data = read_file(self.path, MOST_KEPT, private=True)
        except OSError:
            return b""
        start = len(self._magic) + _DIGEST
        head, content = data[:start], data[start:]
        if head != self._magic + blake3.blake3(content).digest():
            self._log.info("%s is damaged: %s are made again", self.path, self._what)
            return b""
        return content

    def merge(self, merged: Callable[[bytes], bytes]) -> bool:
        """Replace the content; return whether it is on the disk as wanted.

        Args:
            merged: gets what is there under the lock, and returns what shall be there.
        """
        held: set[Path] = _mine.__dict__.setdefault("held", set())
        path = self.path.with_name(f"{self.path.name}.lock")
        if path in held or not self.path.parent.is_dir():
            return False
        held.add(path)
        try:
            lock = take(path)
            try:
                present = self.read()
                content = merged(present)
                if content != present:
                    self._write(content)
            finally:
                lock.release()
        except OSError as error:
            self._log.info("%s are not kept in %s: %s", self._what, self.path, error)
            return False
        finally:
            held.discard(path)
        return True

    def _write(self, content: bytes) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp")  # ours alone, under the lock
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(self._magic + blake3.blake3(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
