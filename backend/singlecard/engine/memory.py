"""What was decided by building plans, kept beside the engines, so that it is decided once.

A memory is named by the digest of all that the decision followed from. It holds no engine: one that
is lost or damaged costs time, and is made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any

import blake3

from singlecard.engine.cache import Cache
from singlecard.errors import CacheError

FORMAT = 1
SUFFIX = ".placement"


def recall(cache: Cache, digest: str) -> Any:
    """Return what was remembered under a digest, or None where there is nothing whole."""
    path = cache.folder / f"{digest}{SUFFIX}"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        value = held["value"]
        if held["format"] == FORMAT and held["checksum"] == _checksum(digest, value):
            return value
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def remember(cache: Cache, digest: str, value: Any) -> None:
    """Keep plain values under a digest; a folder that cannot be written to keeps nothing."""
    with contextlib.suppress(OSError, CacheError):
        cache.open()
        held = {"format": FORMAT, "checksum": _checksum(digest, value), "value": value}
        handle, temporary = tempfile.mkstemp(
            prefix=f"{digest[:16]}.", suffix=".tmp", dir=cache.folder
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(held, file)
            os.replace(temporary, cache.folder / f"{digest}{SUFFIX}")
        except BaseException:
            os.unlink(temporary)
            raise


def _checksum(digest: str, value: Any) -> str:
    text = digest + json.dumps(value, sort_keys=True)
    return blake3.blake3(text.encode()).hexdigest()
