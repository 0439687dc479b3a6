"""Sizes as people write them: ``500MB``, ``1.5 GB``, and binary ones, ``8GiB``."""

from __future__ import annotations

import re

_UNITS: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def bytes_from_text(text: str) -> int:
    """Return a number of bytes.

    >>> bytes_from_text("1.5GB"), bytes_from_text("8GiB")
    (1500000000, 8589934592)

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{text!r} is no size: write a number of bytes, or a unit with it, such as 500MB or "
            "8GiB"
        )
    try:
        return round(float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{text[:40]!r} is larger than any memory") from None
