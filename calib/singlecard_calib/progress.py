"""The calls done as a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

#: Is told of the calls done, and how many there are, if known.
Callback = Callable[[int, int | None], None]


@contextmanager
def progress_shown(callback: Callback | None, length: int | None) -> Iterator[Callback]:
    """Give what is to be told of each call: the caller's own, or a bar if there is a terminal.

    The bar is on standard error, and gone at the end of the block.
    """
    if callback is not None or not sys.stderr.isatty():
        yield callback or _silent
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("calibrating", total=length)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _silent(done: int, total: int | None) -> None:
    pass
