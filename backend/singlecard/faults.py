"""What raises inside singlecard ends in PyTorch's answer: how it is told, and what is raised.

A fault of ours is a slower model and a line to report. The caller learns of three things at once
all the same: input that is not valid, what PyTorch itself raises for a call, and everything with
``strict=True``.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from singlecard.errors import (
    CacheError,
    CalibrationError,
    FlavourError,
    OptionError,
    RewriteError,
    RuntimeFailure,
    SinglecardError,
)
from singlecard.observe.counters import count_one
from singlecard.observe.topics import topic

Answer = TypeVar("Answer")

#: What only the caller can mend, or asked to be told: raised while a graph is compiled, always.
BAD_INPUT = (OptionError, CalibrationError, CacheError, FlavourError, RewriteError)


class HalfWritten(RuntimeFailure):
    """Some of the caller's tensors were written to and others were not: nothing can answer now."""


def reason_of(error: BaseException, stage: str) -> str:
    """Return one sentence that says what failed, and whether it is worth a report.

    Args:
        error: what was raised.
        stage: what was being done, as a noun: ``lowering``.
    """
    if isinstance(error, SinglecardError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"{stage} ran out of the card's memory ({_first_line(error)})"
    if isinstance(error, MemoryError):
        return f"{stage} ran out of this machine's memory"
    return f"{stage} failed with {type(error).__name__}: {_first_line(error)}: please report this"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


class Faults:
    """Lets PyTorch answer where something of ours failed in a call, and tells each reason once."""

    def __init__(self, stage: str, part: str, *, keep: Callable[[str], None] | None = None) -> None:
        """Prepare.

        Args:
            stage: what is being done, as a noun.
            part: what PyTorch answers instead: ``this part``, ``this graph``.
            keep: given each reason, to be found in reports.
        """
        self._stage, self._part, self._keep = stage, part, keep
        self._told: set[str] = set()

    def answer(self, error: Exception, instead: Callable[[], Answer]) -> Answer:
        """Return PyTorch's answer in place of what raised ``error``.

        Raises:
            HalfWritten: it was that already.
            CalibrationError: the data is not fit to calibrate with; no table comes of it.
            RewriteError: a check was asked for.
            Exception: what PyTorch raises for this call; then nothing is told, for the call was to
                raise.
        """
        if isinstance(error, (HalfWritten, CalibrationError, RewriteError)):
            raise error
        traceback.clear_frames(error.__traceback__)  # what the failed attempt holds is not needed
        try:
            answer = instead()
        except Exception as own:
            raise own from None
        reason = reason_of(error, self._stage)
        kind = reason if isinstance(error, SinglecardError) else type(error).__name__
        self.tell(reason, kind)
        return answer

    def tell(self, reason: str, kind: str, *, is_fault: bool = True) -> None:
        """Say that PyTorch answered: in the log, once for each kind of reason; in the counters."""
        count_one("fallback_calls")
        if kind in self._told:
            return
        self._told.add(kind)
        topic("runtime").warning("%s: %s runs in PyTorch", reason, self._part)
        if is_fault and self._keep is not None:
            self._keep(reason)
