"""A memory plan as a table."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.text import Text

from singlecard.checking import counted
from singlecard.report.memory_rows import LINK, MemoryPlan, PlanRow
from singlecard.report.plan_rows import UNKNOWN, Grid, format_bytes, format_seconds
from singlecard.report.render import table_of

_FROM_CONFIG = (
    "The examples have no cache of keys and values: the column is what a static cache of the "
    "model's config takes, in the type of its weights."
)
_NOT_COUNTED = (
    "Not counted: a PyTorch module's own weights, where they are on the card too, and what ops "
    "that stay in PyTorch take."
)
_NOT_TOLD = (
    "TensorRT did not log what every plan takes, so whether those fit is unknown: load the engine "
    "on the card to see."
)
_STREAMED = (
    "Streaming needs buffers of its own, and not every weight can be streamed: only a card tells "
    "how much (the engine's weight_streaming_scratch_memory_size and streamable_weights_size). "
    f"'adds' is what a call takes at least to move them at {LINK / 1e9:.4g} GB/s, which is assumed "
    "(PCIe 4.0 with 8 lanes)."
)


def memory_table(plan: MemoryPlan) -> RenderableType:
    """Return a plan as a table, what to take, and what the figures leave out."""
    title = (
        f"{plan.name} on {plan.card}: {format_bytes(plan.card_bytes)}, of which "
        f"{format_bytes(plan.reserve_bytes)} are left to CUDA and PyTorch (assumed)"
    )
    return Group(table_of(_grid(plan, title)), *map(Text, [*_advice(plan), *_remarks(plan)]))


def _grid(plan: MemoryPlan, title: str) -> Grid:
    rows = plan.rows
    columns: dict[str, Callable[[PlanRow], str]] = {
        "precision": lambda row: row.precision,
        "batch>": lambda row: _number(row.batch),
        "length>": lambda row: _number(row.length),
        "kept>": lambda row: f"{row.share:.0%}",
        "weights>": lambda row: _size(row, row.weights_bytes),
        "scratch>": lambda row: _size(row, row.scratch_bytes),
        "in/out>": lambda row: _size(row, row.tensor_bytes),
        "cache>": lambda row: "" if row.cache_bytes is None else format_bytes(row.cache_bytes),
        "needs>": lambda row: _size(row, row.needs_bytes),
        "fits": _verdict,
        "left>": lambda row: _size(row, row.left_bytes),
        "adds>": lambda row: format_seconds(row.stream_seconds) if row.streamed_bytes else "",
    }
    absent = {
        "batch>": all(row.batch is None for row in rows),
        "length>": all(row.length is None for row in rows),
        "cache>": not plan.cache,
        "kept>": all(row.share == 1 for row in rows),
        "adds>": all(row.share == 1 for row in rows),
    }
    shown = {name: cell for name, cell in columns.items() if not absent.get(name)}
    return Grid(title, tuple(shown), tuple(tuple(c(row) for c in shown.values()) for row in rows))


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _size(row: PlanRow, size: int | None) -> str:
    return "" if row.footprint is None else format_bytes(size)


def _verdict(row: PlanRow) -> str:
    if row.problem:
        return "no plan"
    if row.recommended:
        return "yes *"
    if row.fits is None:
        return UNKNOWN
    return "yes" if row.fits else "no"


def _advice(plan: MemoryPlan) -> list[str]:
    """Return what to ask for, for each batch and length."""
    if any(row.fits is None for row in plan.rows) and not plan.fits:
        return []
    if not plan.fits:
        return ["Nothing fits: plan for a smaller batch or length, or for a larger card."]
    lines = []
    for row in plan.recommended:
        budget = "" if row.memory_budget is None else f", memory_budget={row.memory_budget}"
        sizes = [
            f"{name} {value}"
            for name, value in (("batch", row.batch), ("length", row.length))
            if value is not None
        ]
        where = f" for {', '.join(sizes)}" if sizes else ""
        lines.append(f"* take precision={row.precision!r}{budget}{where}")
    return lines


def _remarks(plan: MemoryPlan) -> list[str]:
    """Return what the figures assume and leave out."""
    problems = {f"{row.precision}: {row.problem}" for row in plan.rows if row.problem}
    remarks = sorted(problems)
    if plan.cache == "config":
        remarks.append(_FROM_CONFIG)
    left = max((row.footprint.left_ops for row in plan.rows if row.footprint), default=0)
    if left:
        remarks.append(f"{counted(left, 'op')} {'stays' if left == 1 else 'stay'} in PyTorch.")
    if any(row.fits is None for row in plan.rows):
        remarks.append(_NOT_TOLD)
    remarks.append(_NOT_COUNTED)
    if any(row.share < 1 for row in plan.rows):
        remarks.append(_STREAMED)
    return remarks
