"""What the tests of the cache share: entries to store, and what must hold of a folder."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from singlecard.engine.cache import PLAN, Cache

A, B, C = "a" * 64, "b" * 64, "c" * 64


def writes(content: bytes) -> Callable[[Path], dict[str, Any]]:
    """Return what stores a plan with this content."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(content)
        return {"key": {"network": "n"}, "build_seconds": 0.5, "report": {}}

    return write


def visible(cache: Cache) -> set[str]:
    """Return all names in the folder of engines."""
    return {path.name for path in cache.engines.iterdir()} if cache.engines.exists() else set()


def content_of(cache: Cache, digest: str) -> bytes | None:
    """Return the plan that the cache gives for a digest, or None."""
    entry = cache.find(digest)
    return None if entry is None else entry.plan.read_bytes()


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a manifest by hand."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def in_child(work: Callable[[], object]) -> int:
    """Run something in a forked process; return its exit status, negative for a signal's number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def filled(folder: Path) -> Cache:
    """Return a cache with the entries A and B."""
    store = Cache(folder)
    store.store(A, writes(b"plan of a"))
    store.store(B, writes(b"plan of b, longer"))
    return store
