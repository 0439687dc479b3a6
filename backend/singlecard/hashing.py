"""BLAKE3 with as many threads as the data is worth."""

from __future__ import annotations

import os

import blake3

#: Bytes below which starting threads costs more than it saves.
_LARGE = 4 << 20

#: Threads beyond which memory is what limits.
_MOST = 16


def hasher_for(size: int) -> blake3.blake3:
    """Return a hasher for about this many bytes.

    Its threads are its own. Those that blake3 shares by ``AUTO`` are not there in a forked child,
    where the first large update waits for them for ever (blake3 1.0.11).
    """
    threads = min(_MOST, len(os.sched_getaffinity(0))) if size >= _LARGE else 1
    return blake3.blake3(max_threads=threads)
