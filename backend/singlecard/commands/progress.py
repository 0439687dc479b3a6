"""The builder's progress as bars on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from singlecard.network.building import Progress as Callback


@contextmanager
def progress_bars(label: str) -> Iterator[Callback | None]:
    """Show the builder's phases on standard error while the block runs; gone at its end.

    Gives the callback for ``progress=``, or None where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bars.add_task(label, total=None)
        running: dict[str, TaskID] = {}

        def show(phase: str, done: int, steps: int) -> None:
            if done >= steps:
                if phase in running:
                    bars.remove_task(running.pop(phase))
                return
            if phase not in running:
                running[phase] = bars.add_task(phase, total=steps)
            bars.update(running[phase], completed=done)

        yield show
