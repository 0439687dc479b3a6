"""Kernels that TensorRT for RTX compiled on a card, kept beside the engine for the next process.

One file holds those of one engine on one model of card, one driver and one TensorRT. Processes that
use it at the same time do not lose each other's kernels: whoever writes has the lock, and adds its
own to what is there then. A file that is damaged, or that TensorRT does not take, is replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3

from singlecard.engine.locking import take

log = logging.getLogger("singlecard.runtime")

#: Before the content: what it is, and its digest, which tells of damage.
_MAGIC = b"singlecard.kernels.1\n"
_DIGEST = 32


def kernels_name(card: str, driver: int, version: str) -> str:
    """Return the file name for a model of card, a driver's major version, and a TensorRT."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", card).strip("-").lower()
    return f"kernels.{plain}.cuda{driver}.{version}.bin"


class KernelFile:
    """One such file."""

    def __init__(self, path: Path, held: object = None) -> None:
        """Name a file, which need not be there.

        Args:
            path: the file.
            held: whatever keeps its folder where it is.
        """
        self.path, self._held = path, held
        self._saved = b""

    def load(self, cache: Any) -> None:
        """Fill an empty ``IRuntimeCache`` with what is there, if it is for this machine."""
        content = self._read()
        if content and cache.deserialize(content):
            self._saved = content
            log.debug("%s: %d bytes of compiled kernels", self.path, len(content))
        elif content:
            log.info("%s is for another driver or card: kernels are compiled again", self.path)

    def save(self, cache: Any, new_cache: Callable[[], Any]) -> None:
        """Write what a cache holds, together with what is there; nothing where it cannot be.

        Args:
            cache: an ``IRuntimeCache``.
            new_cache: makes an empty one.
        """
        content = _content(cache)
        if not content or content == self._saved or not self.path.parent.is_dir():
            return
        try:
            lock = take(self.path.with_name(f"{self.path.name}.lock"))
            try:
                present = self._read()
                merged = (
                    content
                    if present in (b"", self._saved)
                    else _merged(present, content, new_cache)
                )
                if merged != present:
                    self._write(merged)
            finally:
                lock.release()
        except OSError as error:
            log.info("compiled kernels are not kept in %s: %s", self.path, error)
        else:
            self._saved = content

    def _read(self) -> bytes:
        """Return the content; nothing where it is missing or damaged."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return b""
        head, content = data[: len(_MAGIC) + _DIGEST], data[len(_MAGIC) + _DIGEST :]
        if head != _MAGIC + blake3.blake3(content).digest():
            log.info("%s is damaged: kernels are compiled again", self.path)
            return b""
        return content

    def _write(self, content: bytes) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp")  # ours alone, under the lock
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(_MAGIC + blake3.blake3(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _content(cache: Any) -> bytes:
    serialized = cache.serialize()
    return b"" if serialized is None else bytes(serialized)


def _merged(present: bytes, own: bytes, new_cache: Callable[[], Any]) -> bytes:
    """Return two caches in one.

    TensorRT does not say whether a cache that is filled twice keeps what it was filled with first.
    Where it does not, the larger of the two is kept: no file gets smaller.
    """
    both = new_cache()
    if both is None or not both.deserialize(present):
        return own  # of another driver or card: of no use here
    both.deserialize(own)
    return max(_content(both), present, own, key=len)
