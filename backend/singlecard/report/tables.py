"""Tables for the terminal: what `verify`, `explain` and the command line print."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from singlecard.engine.plan_report import PlanReport
from singlecard.engine.plan_traffic import largest, total
from singlecard.report.guards import guard_rows
from singlecard.report.plan_rows import FallbackRow, Grid, format_bytes, format_count
from singlecard.report.quantized import placement_grid
from singlecard.report.render import fallback_table, table_of

if TYPE_CHECKING:  # both import PyTorch, which the tables themselves can do without
    from singlecard.engine.build import Engine
    from singlecard.report.verify import VerifyReport

#: Digits of a digest that are shown, and that name an engine among a user's.
SHOWN_DIGITS = 12


def text_of(renderable: RenderableType) -> str:
    """Return what would be printed, without colours, as wide as the terminal."""
    console = Console(width=shutil.get_terminal_size((100, 24)).columns, color_system=None)
    with console.capture() as captured:
        console.print(renderable, crop=False)
    lines = captured.get().splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def facts_table(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    """Return named values: what it is, its value, a remark that may be ""."""
    table = Table(box=None, show_header=False, title=Text(title), title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_column(style="dim", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def fallback_rows(fallback: Iterable[tuple[str, str, str]]) -> list[FallbackRow]:
    """Count the ops left to PyTorch, given as op, reason and line; the most frequent come first."""
    return [
        FallbackRow(op, reason, times, line)
        for (op, reason, line), times in Counter(fallback).most_common()
    ]


def verify_table(report: VerifyReport, limit: float | None = None) -> RenderableType:
    """Return a verification as a table.

    Args:
        report: what `verify` found.
        limit: the largest relative L2 error that passes, if there is one.
    """
    verdict = report.mismatch or (f"at most {limit:.1e} passes" if limit is not None else "")
    if not report.engines:
        verdict = "of PyTorch from itself: there is no engine to verify"
    rows = [
        ("ops lowered", *lowered_text(report.coverage, report.ops)),
        ("engines", *engines_text(report.engines, report.built)),
        *size_rows(report.plans),
        *guard_rows(report.guards),
        ("relative L2 error", f"{report.relative_l2:.2e}", verdict),
        ("largest difference", f"{report.max_abs_error:.2e}", "absolute"),
        ("", f"{report.max_rel_error:.2e}", "relative to the largest value of its output"),
        ("time", f"{report.timings.get('total', 0.0):.1f} s", built_text(report.timings)),
    ]
    parts: list[RenderableType] = [facts_table("Verification against eager PyTorch", rows)]
    if report.placements:
        parts += ["", table_of(placement_grid(report.placements))]
    if not report.fallback:
        return Group(*parts)
    lines = report.fallback_lines or [""] * len(report.fallback)
    left_out = [(*pair, line) for pair, line in zip(report.fallback, lines, strict=True)]
    return Group(*parts, fallback_table(fallback_rows(left_out)))


def lowered_text(coverage: float, ops: int) -> tuple[str, str]:
    left = ops - round(coverage * ops)
    return f"{coverage:.0%} of {ops}", f"{left} left to PyTorch" if left else ""


def engines_text(count: int, built: int) -> tuple[str, str]:
    return str(count), f"{built} built now, {count - built} found in the cache"


def built_text(timings: dict[str, float]) -> str:
    seconds = timings.get("build", 0.0)
    return f"of which {seconds:.1f} s for engines" if seconds else ""


def size_rows(plans: Sequence[PlanReport]) -> list[tuple[str, str, str]]:
    """Return kernels, size and scratch of all engines together; engines share scratch memory."""
    if not plans:
        return []
    return [
        ("kernels", format_count(total(plan.kernel_count for plan in plans)), ""),
        ("engine size", format_bytes(sum(plan.engine_bytes for plan in plans)), "on disk"),
        ("scratch", format_bytes(largest(plan.scratch_bytes for plan in plans)), "of the largest"),
    ]


def engines_table(engines: Sequence[Engine], targets: str) -> RenderableType:
    """Return one row for each engine that was built or found, and the files of their plans."""
    rows = [
        (
            engine.digest[:SHOWN_DIGITS],
            f"built in {engine.seconds:.1f} s" if engine.built else "found",
            targets,
            format_count(engine.report.kernel_count),
            format_bytes(engine.report.engine_bytes),
            format_bytes(engine.report.scratch_bytes),
        )
        for engine in engines
    ]
    columns = ("engine", "", "targets", "kernels>", "size>", "scratch>")
    files = [Text(str(engine.plan), no_wrap=True, overflow="ignore") for engine in engines]
    return Group(table_of(Grid("Engines", columns, tuple(rows))), *files)
