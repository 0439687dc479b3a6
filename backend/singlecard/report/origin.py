"""Which of the user's own lines an exception comes from."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

_FOREIGN = tuple(
    {sysconfig.get_path(kind) + os.sep for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {str(Path(__file__).parents[1]) + os.sep}
)


def place_of(error: BaseException) -> str:
    """Return ``file:line`` of the innermost line that is the user's own, or "".

    Lines of Python, of installed packages and of singlecard are not; if there are no others, the
    innermost of all. A syntax error is where it stands, which no traceback shows.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    chosen = [frame for frame in frames if _is_own(frame.filename)] or frames
    return f"{_shown(chosen[-1].filename)}:{chosen[-1].lineno}" if chosen else ""


def _is_own(file: str) -> bool:
    return not file.startswith("<") and not os.path.abspath(file).startswith(_FOREIGN)


def _shown(file: str) -> str:
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's text, or "(no message)"."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    lines = text.strip().splitlines()
    return lines[0].rstrip(".") if lines else "(no message)"
