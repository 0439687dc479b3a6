"""What a verb answers, for a person and for a program."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType

#: Columns of a table that is written to a file or a pipe.
_PIPED_WIDTH = 120


@dataclass(frozen=True)
class Answer:
    """The end of a verb that could do its work.

    Attributes:
        document: plain values, for ``--json``.
        shown: the same for a person.
        status: the exit status: 0, or 1 if the answer is no.
    """

    document: Mapping[str, Any]
    shown: RenderableType
    status: int = 0


def print_answer(answer: Answer, as_json: bool) -> None:
    """Write an answer to standard output."""
    if as_json:
        print_document(answer.document)
    else:
        width = None if sys.stdout.isatty() else _PIPED_WIDTH
        _Console(width=width).print(answer.shown, crop=False)  # a path must stay whole


class _Console(Console):
    """A console whose reader may go away: rich alone would end the process with status 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def print_document(document: Mapping[str, Any]) -> None:
    """Write one JSON document to standard output."""
    print(json.dumps(_plain(document), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; infinity and NaN, which JSON lacks, become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
