"""Folders of this process alone, for engines that cannot be put where they belong.

They lie below the system's temporary folder and end with the process. Those of processes that were
killed are removed by the next one that needs such a folder.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

from singlecard.engine.scratch import scratch, sweep
from singlecard.engine.shelf import StoreError

_PREFIX = "singlecard"
_STEM = re.compile(rf"{_PREFIX}\.[0-9a-f]{{16}}")

_making = threading.Lock()


def private_folder(instead_of: Path, make: bool) -> Path | None:
    """Return the folder that stands for a cache folder; None where there is none and none is made.

    Raises:
        StoreError: it cannot be made.
    """
    known = _known()
    name = os.getpid(), instead_of.absolute()  # a forked child has folders of its own
    if make:
        with _making:
            if name not in known:
                known[name] = _make()
    return known.get(name)


@functools.cache
def _known() -> dict[tuple[int, Path], Path]:
    """Folders that were made, by process and by what they stand for."""
    return {}


def _make() -> Path:
    parent = Path(tempfile.gettempdir())
    sweep(parent, _STEM)
    kept, process = ExitStack(), os.getpid()
    try:
        path = kept.enter_context(scratch(parent, _PREFIX))
        path.mkdir(mode=0o700)
    except OSError as error:
        kept.close()
        raise StoreError(
            f"no temporary folder could be made in {parent}: {error}. Free some space, or choose "
            "another with TMPDIR"
        ) from error
    atexit.register(lambda: kept.close() if os.getpid() == process else None)
    return path
