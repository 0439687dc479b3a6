"""Sizes as people write them: ``500MB``, ``1.5 GB``."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def bytes_from_text(text: str) -> int:
    """Return a number of bytes.

    >>> bytes_from_text("1.5GB")
    1500000000

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{text!r} is no size: write a number of bytes, or a unit with it, such as 500MB or 2GB"
        )
    return round(float(match[1]) * _UNITS[match[2]])
