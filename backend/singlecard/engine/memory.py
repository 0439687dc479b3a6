"""What was decided once, kept beside the engines, so that it is decided once.

A memory is named by the digest of all that the decision followed from. It holds no engine: one that
is lost or damaged costs time, and is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

import blake3

from singlecard.engine.cache import Cache
from singlecard.engine.scratch import scratch
from singlecard.errors import CacheError
from singlecard.files import MOST_KEPT, read_file

FORMAT = 1

#: Ends with the format, so that releases with different ones do not forget each other's.
SUFFIX = f".memory.v{FORMAT}"


def recall(cache: Cache, digest: str) -> Any:
    """Return what was remembered under a digest, or None where there is nothing whole."""
    path = cache.engines / f"{digest}{SUFFIX}"
    try:
        held = json.loads(read_file(path, MOST_KEPT, private=True))
        value = held["value"]
        if held["format"] == FORMAT and held["checksum"] == _checksum(digest, value):
            return value
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None


def remember(cache: Cache, digest: str, value: Any) -> None:
    """Keep plain values under a digest; a folder that cannot be written to keeps nothing."""
    with contextlib.suppress(OSError, CacheError):
        cache.open()
        held = {"format": FORMAT, "checksum": _checksum(digest, value), "value": value}
        with scratch(cache.engines, digest[:16]) as temporary:
            with temporary.open("x", encoding="utf-8") as file:
                json.dump(held, file)
            os.replace(temporary, cache.engines / f"{digest}{SUFFIX}")


def _checksum(digest: str, value: Any) -> str:
    text = digest + json.dumps(value, sort_keys=True)
    return blake3.blake3(text.encode()).hexdigest()
