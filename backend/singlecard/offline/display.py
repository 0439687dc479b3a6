"""Running jobs on a terminal: one line each, and a bar for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
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

from singlecard.offline.process import Process
from singlecard.report.plan_rows import format_bytes


@contextmanager
def display(count: int) -> Iterator[Callable[[Sequence[Process]], None]]:
    """Show jobs on standard error while the block runs; nothing where that is no terminal.

    Gives the function to call, again and again, with the jobs that run.
    """
    if not sys.stderr.isatty():
        yield lambda running: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        whole, ended = bars.add_task(f"0 of {count} jobs", total=count), 0
        lines: dict[str, TaskID] = {}

        def show(running: Sequence[Process]) -> None:
            nonlocal ended
            now = {process.job.key: process for process in running}
            for key in [key for key in lines if key not in now]:
                bars.remove_task(lines.pop(key))
                ended += 1
                bars.update(whole, completed=ended, description=f"{ended} of {count} jobs")
            for key, process in now.items():
                if key not in lines:
                    lines[key] = bars.add_task("", total=None)
                text = f"{process.job.name}: {process.state}, {format_bytes(process.held)}"
                bars.update(lines[key], description=text)

        yield show
