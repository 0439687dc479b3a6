"""The logger ``singlecard`` and its topics, chosen by a variable or a call.

It is standard logging: each topic is a child such as ``singlecard.cache``. The root logger is never
touched, and a program that gives it handlers gets each line through those alone.
"""

from __future__ import annotations

import difflib
import logging
import os
from types import MappingProxyType

from singlecard.errors import OptionError

VARIABLE = "SINGLECARD_LOGS"

TOPICS = MappingProxyType(
    {
        "build": "engines as they are built: seconds, kernels, bytes",
        "cache": "hits, misses with their reason, damaged and evicted entries",
        "calibration": "data that was seen, tables that were made",
        "capture": "graphs that PyTorch could not hand over",
        "partition": "parts that stay in PyTorch, and why",
        "placement": "plans that were tried to place INT8 and FP8",
        "remote": "engines fetched from and sent to the shared cache",
        "runtime": "calls that run in PyTorch instead of an engine",
        "tensorrt": "the builder's own messages",
    }
)

_LEVELS = MappingProxyType({"+": logging.DEBUG, "": logging.INFO, "-": logging.ERROR})


def topic(name: str) -> logging.Logger:
    """Return the logger of a topic."""
    assert name in TOPICS, name
    return logging.getLogger(f"singlecard.{name}")


def set_logs(**levels: int | None) -> None:
    """Choose what singlecard logs, by topic; others stay as they are.

    Lines go to standard error, or where the program itself sends its log if it has a root handler.

    Args:
        levels: for each topic a level of `logging`, or None for what the logger ``singlecard`` has;
            ``all`` stands for every topic. Topics are build, cache, calibration, capture,
            partition, placement, remote, runtime and tensorrt.

    Raises:
        OptionError: a topic is unknown (the message names the nearest valid one), or a level is no
            number.

    Example:
        >>> import logging, singlecard
        >>> singlecard.set_logs(cache=logging.DEBUG, build=logging.INFO)
        >>> singlecard.set_logs(all=None)
    """
    for name, level in levels.items():
        if name != "all" and name not in TOPICS:
            raise OptionError(f"set_logs has no topic {name!r}: {_hint(name)}")
        if level is not None and (isinstance(level, bool) or not isinstance(level, int)):
            raise OptionError(
                f"set_logs({name}={level!r}) is not valid: it takes a level of logging, such as "
                "logging.INFO, or None"
            )
    chosen: dict[str, int | None] = {}
    if "all" in levels:
        chosen.update(dict.fromkeys(TOPICS, levels.pop("all")))
    chosen.update(levels)
    for name, level in chosen.items():
        topic(name).setLevel(logging.NOTSET if level is None else level)
    _show()


def read_environment() -> None:
    """Do as ``SINGLECARD_LOGS`` says, such as ``cache,+build,-runtime``; unset, it does nothing.

    ``+`` is DEBUG, ``-`` errors alone, a plain name INFO. What names no topic is warned of, and the
    rest holds: a variable that is wrong must not keep a program from running.
    """
    given = os.environ.get(VARIABLE, "")
    levels: dict[str, int | None] = {}
    unknown = []
    for item in filter(None, map(str.strip, given.split(","))):
        sign = item[0] if item[0] in "+-" else ""
        name = item[len(sign) :]
        if name == "all" or name in TOPICS:
            levels[name] = _LEVELS[sign]
        else:
            unknown.append(name)
    if levels:
        set_logs(**levels)
    if unknown:
        from singlecard.warning import warn_once

        warn_once(
            f"{VARIABLE}={given!r} names {', '.join(map(repr, unknown))}, which is no topic: "
            f"{_hint(unknown[0])}"
        )


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, TOPICS, 1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}valid are all, {', '.join(TOPICS)}"


class _Shown(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error, unless the program's root logger has handlers of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            super().emit(record)


def _show() -> None:
    """Have lines shown, once."""
    log = logging.getLogger("singlecard")
    if not any(isinstance(handler, _Shown) for handler in log.handlers):
        handler = _Shown()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
