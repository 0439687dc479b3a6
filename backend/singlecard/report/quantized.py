"""What was quantized, and why the rest was not: rows for tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from singlecard.report.plan_rows import Grid, format_bytes

if TYPE_CHECKING:  # both import PyTorch, which tables can do without
    from singlecard.engine.cost import Cost
    from singlecard.placement import Decision, Placement

#: Names that are written out for each row.
_SHOWN = 3


def placement_grid(placements: Sequence[Placement]) -> Grid:
    """Return a row for each precision and reason, with how many ops it is true of."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for decision in decisions_of(placements):
        key = (decision.asked, decision.taken, decision.reason)
        groups.setdefault(key, []).append(decision.name)
    rows = [
        (asked, taken, str(len(names)), _listed(names), reason)
        for (asked, taken, reason), names in groups.items()
    ]
    columns = ("asked for", "has", "ops>", "which", "why")
    return Grid("Quantization", columns, tuple(rows), _note(placements))


def decisions_of(placements: Sequence[Placement]) -> list[Decision]:
    return [decision for placement in placements for decision in placement.decisions]


def placement_dict(placement: Placement) -> dict[str, Any]:
    """Return a placement as plain values."""
    return {
        "decisions": [
            {"op": item.name, "asked": item.asked, "has": item.taken, "reason": item.reason}
            for item in placement.decisions
        ],
        "fp16": None if placement.before is None else _cost_dict(placement.before),
        "quantized": None if placement.after is None else _cost_dict(placement.after),
        "trials": placement.trials,
    }


def _cost_dict(cost: Cost) -> dict[str, Any]:
    return {
        "kernels": cost.kernels,
        "bytes_moved": cost.bytes_moved,
        "weights_bytes": cost.weights_bytes,
        "seconds": list(cost.seconds),
    }


def _note(placements: Sequence[Placement]) -> str:
    texts = []
    for placement in placements:
        if placement.before is None or placement.after is None:
            continue
        share = placement.after.against(placement.before)
        texts.append(
            f"FP16 plan: {_cost_text(placement.before)}. As decided: "
            f"{_cost_text(placement.after)}, {share:.2f} of the time (roofline and launches). "
            f"{placement.trials} plans were read."
        )
    return "\n".join(texts)


def _cost_text(cost: Cost) -> str:
    moved = "" if cost.bytes_moved is None else f", {format_bytes(cost.bytes_moved)} moved"
    return f"{cost.kernels} kernels{moved}, weights {format_bytes(cost.weights_bytes)}"


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
