"""Checks of single values, for options and arguments: each returns the value in its one form.

Whatever a caller hands over, an `OptionError` says what it was given for, what it is, and what
would be right.
"""

from __future__ import annotations

import difflib
import operator
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from singlecard.errors import OptionError
from singlecard.sizes import bytes_from_text

#: The largest number of bytes, or of ops, that TensorRT takes: its sizes are of 64 bits.
MOST = 2**63 - 1

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Return a value as an error shows it: short, whatever it is."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # objects of others may refuse to be shown
        return f"<{type(value).__name__}>"


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts: ``1 engine``, ``2 engines``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def wrong(name: str, value: Any, takes: str) -> OptionError:
    """Return the error of a value that is not valid."""
    return OptionError(f"option {name}={shown(value)} is not valid: {takes}")


def choice_from(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of some words.

    Raises:
        OptionError: it names the nearest.
    """
    if isinstance(value, str) and value in choices:
        return str(value)
    close = difflib.get_close_matches(shown(value).strip("'\""), choices, 1, 0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise wrong(name, value, f"{hint}it takes one of {', '.join(choices)}")


def flag_from(name: str, value: Any) -> bool:
    """Return True or False; 0, 1 and "no" are neither.

    Raises:
        OptionError: it is no truth value.
    """
    if not isinstance(value, bool):
        raise wrong(name, value, "it takes True or False")
    return value


def count_from(name: str, value: Any, low: int) -> int:
    """Return an integer that is not below ``low``; one of numpy's is taken.

    Raises:
        OptionError: it is no such integer.
    """
    number = _integer(value)
    if number is None or not low <= number <= MOST:
        raise wrong(name, value, f"it takes an integer >= {low}, at most {MOST}")
    return number


def bytes_from(name: str, value: Any) -> int:
    """Return a number of bytes, which may be given as a text.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(value, str):
        try:
            return count_from(name, bytes_from_text(value), 0)
        except ValueError as error:
            raise OptionError(f"option {name} is not valid: {error}") from error
    number = _integer(value)
    if number is None or not 0 <= number <= MOST:
        raise wrong(name, value, f"it takes bytes up to {MOST}, or a text such as '8GiB'")
    return number


def _integer(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except Exception:  # a tensor of several elements has an index, which raises
        return None


def path_from(name: str, value: Any, what: str) -> Path:
    """Return a path, ``~`` replaced by the user's folder.

    Raises:
        OptionError: it is none, or one that no file can have.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise wrong(name, value, f"it takes {what}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no account here
        raise wrong(name, value, f"{error}. It takes {what}") from error


def address_from(name: str, value: Any) -> str:
    """Return an address as fsspec writes it.

    Raises:
        OptionError: it is no text, or an empty one.
    """
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        takes = "it takes an address such as 's3://bucket/engines' or 'file:///shared/engines'"
        raise wrong(name, value, takes)
    return value


def names_from(name: str, value: Any) -> tuple[str, ...]:
    """Return a list of names; one name, or several with commas between, may stand for it.

    Raises:
        OptionError: it is no list of names.
    """
    items = value.split(",") if isinstance(value, str) else value
    if isinstance(items, (set, frozenset)):  # whose order is another in each process
        items = sorted(items, key=str)
    if not isinstance(items, (list, tuple)) or not all(
        isinstance(item, str) and item.strip() for item in items
    ):
        raise wrong(name, value, "it takes a list of names")
    return tuple(item.strip() for item in items)
