"""Kernels that TensorRT for RTX compiled on a card, kept beside the engine for the next process.

One file holds those of one engine on one model of card, one driver and one TensorRT. Processes that
use it at the same time do not lose each other's kernels. A file that is damaged, or that TensorRT
does not take, is replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from singlecard.engine.merged_file import MergedFile, name_for_card

log = logging.getLogger("singlecard.runtime")

_MAGIC = b"singlecard.kernels.1\n"


def kernels_name(card: str, driver: int, version: str, digest: str = "") -> str:
    """Return the file name for a model of card, a driver's major version, and a TensorRT.

    Args:
        digest: of the engine, where its plan lies elsewhere.
    """
    kind = f"kernels.{digest}" if digest else "kernels"
    return name_for_card(kind, card, driver, version)


class KernelFile:
    """One such file."""

    def __init__(self, path: Path, held: object = None) -> None:
        """Name a file, which need not be there.

        Args:
            path: the file.
            held: whatever keeps its folder where it is.
        """
        self.path, self._held = path, held
        self._file = MergedFile(path, _MAGIC, "compiled kernels", log)
        self._saved = b""

    def load(self, cache: Any) -> None:
        """Fill an empty ``IRuntimeCache`` with what is there, if it is for this machine."""
        content = self._file.read()
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
        if not content or content == self._saved:
            return

        def merged(present: bytes) -> bytes:
            known = present in (b"", self._saved)
            return content if known else _merged(present, content, new_cache)

        if self._file.merge(merged):
            self._saved = content


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
