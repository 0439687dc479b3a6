"""The one warning class of singlecard, and how a warning is given once."""

from __future__ import annotations

import functools
import warnings


class SinglecardWarning(UserWarning):
    """A model runs, but not on an engine."""


@functools.cache
def warn_once(text: str) -> None:
    """Give a `SinglecardWarning`, the first time that this text comes by."""
    warnings.warn(text, SinglecardWarning, stacklevel=2)
