"""A build file from end to end: what is missing is built, what is there is kept."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType

from singlecard.commands.answer import Answer
from singlecard.engine.cache import Cache
from singlecard.offline.build_file import BuildFile, read_build_file
from singlecard.offline.display import display
from singlecard.offline.jobs import Job, jobs_of
from singlecard.offline.memory import default_budget
from singlecard.offline.pool import Limits, Outcome, Pool
from singlecard.offline.state import State
from singlecard.offline.summary import plan_table, summary_document, summary_table
from singlecard.report.plan_rows import format_bytes


@dataclass(frozen=True)
class Wishes:
    """What a command line asks of a build file; None leaves it to the file.

    Attributes:
        cache_dir, workers, memory: instead of those of the file.
        only: names of models; empty means all.
        rebuild: load every model again, whatever is known of it.
        dry_run: only say what would be done.
    """

    cache_dir: Path | None = None
    workers: int | None = None
    memory: int | None = None
    only: Sequence[str] = ()
    rebuild: bool = False
    dry_run: bool = False


def build_from_file(path: Path, wishes: Wishes) -> Answer:
    """Build what a build file asks for; status 1 if anything failed.

    Raises:
        OptionError: the file is not valid; nothing was built.
        CacheError: the cache folder cannot be used.
    """
    file = read_build_file(path)
    jobs = jobs_of(file, wishes.only)
    cache = Cache((wishes.cache_dir or file.cache_dir or Cache().folder).absolute())
    state = State(cache)
    if wishes.dry_run:
        return _plan(path, file, jobs, cache, state, wishes)
    cache.open()
    limits = Limits(
        wishes.workers or file.workers or len(os.sched_getaffinity(0)),
        wishes.memory or file.memory or default_budget(),
    )
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    todo = []
    for job in jobs:
        if wishes.rebuild or state.why_build(job) is not None:
            todo.append(job)
        else:
            outcomes[job.key] = Outcome(job, "kept", document=state.document(job))

    def done(outcome: Outcome) -> None:
        outcomes[outcome.job.key] = outcome
        if outcome.status == "failed" or outcome.document is None:
            state.forget(outcome.job)
        else:
            state.remember(outcome.job, outcome.peak, outcome.parts or {}, outcome.document)

    with display(len(todo)) as watch:
        Pool(limits, state.need, {"cache_dir": str(cache.folder)}, watch).run(todo, done)
    ordered = [outcomes[job.key] for job in jobs]
    seconds = time.monotonic() - started
    failed = any(outcome.status == "failed" for outcome in ordered)
    shown: RenderableType = summary_table(path, cache.folder, limits, ordered, seconds)
    return Answer(
        summary_document(path, cache.folder, limits, ordered, seconds), shown, 1 if failed else 0
    )


def _plan(
    path: Path, file: BuildFile, jobs: Sequence[Job], cache: Cache, state: State, wishes: Wishes
) -> Answer:
    """Say what would be done, and why."""
    rows, documents = [], []
    for job in jobs:
        why = "asked for" if wishes.rebuild else state.why_build(job)
        need = state.need(job)
        rows.append(
            (
                job.name,
                "up to date" if why is None else "to build",
                why or "",
                "unknown" if need is None else format_bytes(need),
            )
        )
        documents.append(
            {
                "name": job.entry.name,
                "precision": job.precision,
                "targets": job.targets_text,
                "status": "kept" if why is None else "to build",
                "reason": why or "",
                "memory_bytes": need,
            }
        )
    document = {"file": str(path), "cache_dir": str(cache.folder), "jobs": documents}
    return Answer(document, plan_table(path, cache.folder, rows))
