"""Sizes of GPU memory as people write them: ``8GiB``, ``512 MiB``, and decimal ones, ``12GB``."""

from __future__ import annotations

import re

from singlecard.sizes import bytes_from_text

_BINARY = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def memory_from_text(text: str) -> int:
    """Return a number of bytes.

    >>> memory_from_text("8GiB"), memory_from_text("8GB")
    (8589934592, 8000000000)

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]ib)", text.strip().lower(), re.ASCII)
    if match is not None:
        return round(float(match[1]) * _BINARY[match[2]])
    try:
        return bytes_from_text(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no size: write a number with a unit, such as 8GiB or 500MB"
        ) from error
