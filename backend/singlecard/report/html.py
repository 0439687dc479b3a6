"""Plan reports as one HTML page that needs no network and no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from singlecard.checking import counted
from singlecard.engine.cards import Card, cards_of
from singlecard.engine.plan_report import PlanReport
from singlecard.report import plan_rows
from singlecard.report.plan_rows import FallbackRow, Grid

_STYLE = """
:root { --ink: #1d2329; --soft: #66707a; --line: #dfe3e8; --ground: #fff; --tile: #f5f7f9;
  --mark: #2f7d32; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #97a1ab; --line: #343c44; --ground: #16191d; --tile: #1f242a;
    --mark: #7ac47e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.5rem 4rem; color: var(--ink);
  background: var(--ground); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 1rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr));
  gap: .75rem; margin: 0; }
.tiles div { background: var(--tile); border-radius: .5rem; padding: .75rem 1rem; }
.tiles dt, .tiles .why, .note { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.35rem; font-weight: 600; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .9rem .35rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.bar { display: block; height: .25rem; margin-top: .2rem; border-radius: .2rem;
  background: var(--mark); margin-left: auto; }
details { margin-top: 1.75rem; }
summary { cursor: pointer; font-weight: 600; }
"""


def plan_html(
    plans: Sequence[tuple[str, PlanReport]],
    *,
    title: str = "singlecard explain",
    fallback: Iterable[FallbackRow] = (),
    grids: Sequence[Grid] = (),
    cards: Sequence[Card] | None = None,
    top: int = 25,
    tf32: bool = False,
) -> str:
    """Return a page on the engines of a model and on what stays in PyTorch.

    Args:
        plans: a name and a report for each engine.
        title: heading of the page.
        fallback: what has no engine.
        grids: more tables on the model as a whole.
        cards: cards to bound the time on; None means those a portable engine runs on.
        top: how many kernels to list openly; the whole list can be unfolded.
        tf32: whether the engines round FP32 products to TF32.
    """
    chosen = cards_of() if cards is None else cards
    left_out = plan_rows.fallback_grid(fallback)
    parts = [f"<h1>{escape(title)}</h1>"]
    if len(plans) > 1:
        parts.append(_grid(plan_rows.overview_grid(plans)))
    if left_out.rows:
        parts.append(_grid(left_out))
    parts += [_grid(grid) for grid in grids]
    for name, report in plans:
        parts.append(f"<h2>{escape(name)}</h2>")
        parts.append(_section(report, chosen, top, tf32))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(report: PlanReport, cards: Sequence[Card], top: int, tf32: bool) -> str:
    grids = [
        plan_rows.tensors_grid(report),
        plan_rows.kinds_grid(report),
        plan_rows.arithmetic_grid(report),
        plan_rows.cards_grid(report, cards, tf32),
        plan_rows.kernels_grid(report, top),
    ]
    parts = [_tiles(report), *(_grid(grid) for grid in grids if grid.rows)]
    if report.kernel_count is not None and report.kernel_count > top:
        parts.append(
            f"<details><summary>All {counted(report.kernel_count, 'kernel')} in order</summary>"
            f"{_table(plan_rows.kernels_grid(report))}</details>"
        )
    return "\n".join(parts)


def _tiles(report: PlanReport) -> str:
    tiles = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="why">{escape(why)}</dd></div>'
        for name, value, why in plan_rows.totals(report)
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _grid(grid: Grid) -> str:
    note = f'<p class="note">{escape(grid.note)}</p>' if grid.note else ""
    return f"<h3>{escape(grid.title)}</h3>{_table(grid)}{note}"


def _table(grid: Grid) -> str:
    heads = "".join(
        f"<th{_class(column)}>{escape(column.rstrip('>'))}</th>" for column in grid.columns
    )
    rows = "".join("<tr>" + "".join(map(_cell, grid.columns, row)) + "</tr>\n" for row in grid.rows)
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(column: str, text: str) -> str:
    bar = ""
    if column == "share>" and text:
        bar = f'<span class="bar" style="width:{escape(text)}"></span>'
    return f"<td{_class(column)}>{escape(text)}{bar}</td>"


def _class(column: str) -> str:
    return ' class="number"' if column.endswith(">") else ""
