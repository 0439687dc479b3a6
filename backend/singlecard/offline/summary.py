"""What a run of a build file came to: a table for a person, a document for a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from singlecard.axes import text_from_axes
from singlecard.offline.pool import Limits, Outcome
from singlecard.report.plan_rows import Grid, format_bytes
from singlecard.report.render import table_of
from singlecard.report.tables import facts_table


def summary_document(
    file: Path, cache: Path, limits: Limits, outcomes: Sequence[Outcome], seconds: float
) -> dict[str, Any]:
    """Return a run as plain values."""
    failed = sum(outcome.status == "failed" for outcome in outcomes)
    return {
        "file": str(file),
        "cache_dir": str(cache),
        "workers": limits.workers,
        "memory_bytes": limits.memory,
        "seconds": seconds,
        "succeeded": len(outcomes) - failed,
        "failed": failed,
        "jobs": [_job_document(outcome) for outcome in outcomes],
    }


def _job_document(outcome: Outcome) -> dict[str, Any]:
    job = outcome.job
    built: Mapping[str, Any] = outcome.document or {}
    return {
        "name": job.entry.name,
        "model": job.entry.model,
        "precision": job.precision,
        "targets": job.targets_text,
        "shapes": [f"{name}={text_from_axes(axes)}" for name, axes in job.entry.shapes.items()],
        "status": outcome.status,
        "reason": outcome.reason,
        "note": outcome.note,
        "seconds": outcome.seconds,
        "peak_bytes": outcome.peak or None,
        "coverage": built.get("coverage"),
        "ops": built.get("ops"),
        "fallback": built.get("fallback", []),
        "engines": built.get("engines", []),
        "stderr": outcome.said,
    }


def summary_table(
    file: Path, cache: Path, limits: Limits, outcomes: Sequence[Outcome], seconds: float
) -> RenderableType:
    """Return a run as a table, with the reasons of what failed below."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    done = len(outcomes) - len(failed)
    rows = [
        ("jobs", f"{done} of {len(outcomes)} done", f"{len(failed)} failed" if failed else ""),
        ("cache", str(cache), ""),
        ("time", f"{seconds:.1f} s", f"{limits.workers} at a time, {format_bytes(limits.memory)}"),
    ]
    columns = ("model", "precision", "targets", "engines", "size>", "lowered>", "s>", "peak>")
    cells = tuple(_row(outcome) for outcome in outcomes)
    parts: list[RenderableType] = [
        facts_table(f"Build of {file}", rows),
        table_of(Grid("Jobs", columns, cells)),
    ]
    for outcome in outcomes:
        if outcome.note:
            parts.append(Text(f"{outcome.job.name}: {outcome.note}"))
    for outcome in failed:
        parts.append(Text(f"{outcome.job.name} failed: {outcome.reason}", style="bold"))
        if outcome.said:
            parts.append(Text("\n".join(f"    {line}" for line in outcome.said.splitlines())))
    return Group(*parts)


def plan_table(file: Path, cache: Path, rows: Sequence[tuple[str, ...]]) -> RenderableType:
    """Return what would be done: job, what becomes of it, why, and the memory that it takes."""
    return Group(
        facts_table(f"Build of {file}, not begun", [("cache", str(cache), "")]),
        table_of(Grid("Jobs", ("job", "", "because", "memory>"), tuple(rows))),
    )


def _row(outcome: Outcome) -> tuple[str, ...]:
    job, built = outcome.job, outcome.document or {}
    engines = built.get("engines", [])
    return (
        job.entry.name,
        job.precision,
        job.targets_text,
        _engines_text(outcome, [engine["built"] for engine in engines]),
        format_bytes(sum(engine["engine_bytes"] for engine in engines)) if engines else "",
        f"{built['coverage']:.0%}" if built else "",
        f"{outcome.seconds:.1f}" if outcome.seconds else "",
        format_bytes(outcome.peak) if outcome.peak else "",
    )


def _engines_text(outcome: Outcome, built: Sequence[bool]) -> str:
    if outcome.status == "failed":
        return "FAILED"
    if outcome.status == "kept":
        return f"{len(built)} kept"
    counts = ((sum(built), "built"), (len(built) - sum(built), "found"))
    return ", ".join(f"{count} {word}" for count, word in counts if count)
