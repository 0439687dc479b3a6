"""Guards against rows that masks may hide, as reports show them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports PyTorch
    from singlecard.lowering.guards import Guard


def guard_rows(guards: Iterable[Guard]) -> list[tuple[str, str, str]]:
    """Return what a report says of guards in a line; nothing where there are none."""
    all_of_them = list(guards)
    if not all_of_them:
        return []
    kernels = sum(guard.kernels for guard in all_of_them)
    cost = "part of attention's kernels"
    if kernels:
        cost = f"{kernels} kernel{'s' if kernels > 1 else ''} behind attention"
    return [("rows that masks may hide", f"{len(all_of_them)} guarded", cost)]


def guard_dicts(guards: Iterable[Guard]) -> list[dict[str, Any]]:
    return [asdict(guard) for guard in guards]
