"""A plan report on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from singlecard.engine.cards import Card, cards_of
from singlecard.engine.plan_report import PlanReport
from singlecard.report import plan_rows
from singlecard.report.plan_rows import FallbackRow, Grid


def plan_table(
    report: PlanReport,
    *,
    title: str = "Plan",
    cards: Sequence[Card] | None = None,
    top: int = 10,
    tf32: bool = False,
) -> RenderableType:
    """Return a plan as tables: totals, kinds, arithmetic, the heaviest kernels, roofline times.

    Args:
        report: the plan.
        title: heading of the totals.
        cards: cards to bound the time on; None means those a portable engine runs on.
        top: how many kernels to list.
        tf32: whether the engine rounds FP32 products to TF32.
    """
    chosen = cards_of() if cards is None else cards
    totals = Table(box=None, show_header=False, title=title, title_justify="left")
    totals.add_column(style="bold")
    totals.add_column(justify="right")
    totals.add_column(style="dim")
    for row in plan_rows.totals(report):
        totals.add_row(*(Text(cell) for cell in row))
    grids = [
        plan_rows.tensors_grid(report),
        plan_rows.kinds_grid(report),
        plan_rows.arithmetic_grid(report),
        plan_rows.kernels_grid(report, top),
        plan_rows.cards_grid(report, chosen, tf32),
    ]
    return Group(totals, *(table_of(grid) for grid in grids if grid.rows))


def fallback_table(fallback: Iterable[FallbackRow]) -> Table:
    """Return what stays in PyTorch, and why."""
    return table_of(plan_rows.fallback_grid(fallback))


def table_of(grid: Grid) -> Table:
    """Draw a grid. Cells are plain text: a name with brackets is no markup."""
    table = Table(
        title=Text(grid.title),
        title_justify="left",
        caption=Text(grid.note) if grid.note else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in grid.columns:
        table.add_column(
            column.rstrip(">"),
            justify="right" if column.endswith(">") else "left",
            overflow="fold",
        )
    for row in grid.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
