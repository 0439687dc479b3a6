"""What a plan costs by its own count: time on cards, kernels, bytes.

Used to choose between two plans of one model. The time is the roofline's, and a launch for each
kernel; see `singlecard.engine.roofline` for what it is a bound of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from singlecard.engine.cards import Card
from singlecard.engine.plan_report import PlanReport
from singlecard.engine.plan_traffic import total
from singlecard.engine.roofline import roofline

#: Seconds from the end of one kernel to the start of the next in a CUDA graph. An assumption, not a
#: measurement of ours: no engine has run on a card yet.
LAUNCH = 1e-6


@dataclass(frozen=True)
class Cost:
    """What the plans of one model cost together.

    Attributes:
        kernels: how many are launched.
        bytes_moved: by all kernels; None where a size depends on the call.
        weights_bytes: constants as stored; None where the builder did not tell.
        seconds: on each card, roofline and launches; empty where sizes depend on the call.
    """

    kernels: int
    bytes_moved: int | None
    weights_bytes: int | None
    seconds: tuple[float, ...]

    def against(self, other: Cost) -> float:
        """Return the time relative to another plan's, the mean over cards."""
        if self.seconds and len(self.seconds) == len(other.seconds):
            shares = [a / b for a, b in zip(self.seconds, other.seconds, strict=True) if b]
            return sum(shares) / len(shares) if shares else 1.0
        return self.kernels / max(other.kernels, 1)

    def is_slower_than(self, other: Cost) -> bool:
        """Tell whether some card would take longer than for the other plan."""
        if self.seconds and len(self.seconds) == len(other.seconds):
            return any(a > b for a, b in zip(self.seconds, other.seconds, strict=True))
        return self.kernels > other.kernels


def cost_of(reports: Sequence[PlanReport], cards: Sequence[Card]) -> Cost | None:
    """Add up the plans of one model; None where the kernels of one are not known."""
    kernels = total(report.kernel_count for report in reports)
    if kernels is None:
        return None
    seconds = []
    for card in cards:
        bounds = [roofline(report, card) for report in reports]
        known = [bound.seconds for bound in bounds if bound is not None]
        if len(known) == len(bounds):
            seconds.append(sum(known) + kernels * LAUNCH)
    return Cost(
        kernels,
        total(report.bytes_moved for report in reports),
        total(report.weights_bytes for report in reports),
        tuple(seconds),
    )
