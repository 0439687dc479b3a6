"""The least time in which a card could run a plan.

A bound, not a forecast: for each kernel the longer of two times, that of moving its bytes at the
card's full memory bandwidth and that of its multiplications at the card's full rate; then the sum.
A real run takes longer, since neither is ever reached, and launching a kernel takes a few
microseconds, not counted here because a CUDA graph hides most of it. Small tensors may stay in the
card's cache and move for less. Use it to compare two plans of one model on one card.

Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from dataclasses import dataclass

from singlecard.engine.cards import Card
from singlecard.engine.plan_report import Kernel, PlanReport


@dataclass(frozen=True)
class Roofline:
    """The least time of a plan on a card.

    Attributes:
        card: the card.
        kernel_seconds: of each kernel, in the plan's order.
        bound_by_arithmetic: number of kernels whose multiplications take longer than their memory.
        unrated: number of kernels that multiply in a type without a published rate, or in an
            unknown quantity: their time is that of their memory alone.
    """

    card: Card
    kernel_seconds: tuple[float, ...]
    bound_by_arithmetic: int
    unrated: int

    @property
    def seconds(self) -> float:
        return sum(self.kernel_seconds)


def roofline(report: PlanReport, card: Card, tf32: bool = False) -> Roofline | None:
    """Return the least time of a plan on a card.

    None if its kernels are not known, or their sizes depend on the call.

    Args:
        report: the plan.
        card: from `cards.CARDS`, or one of your own.
        tf32: whether FP32 products may round to TF32. A plan's log does not tell: pass what the
            engine was built with.
    """
    if report.kernels is None:
        return None
    times = [_times(kernel, card, tf32) for kernel in report.kernels]
    known = [item for item in times if item is not None]
    if len(known) < len(times):
        return None
    return Roofline(
        card=card,
        kernel_seconds=tuple(max(memory, arithmetic or 0.0) for memory, arithmetic in known),
        bound_by_arithmetic=sum((arithmetic or 0.0) > memory for memory, arithmetic in known),
        unrated=sum(arithmetic is None for _, arithmetic in known),
    )


def _times(kernel: Kernel, card: Card, tf32: bool) -> tuple[float, float | None] | None:
    """Return the seconds for memory and for arithmetic; the latter None without a rate."""
    if kernel.bytes_moved is None:
        return None
    memory = kernel.bytes_moved / card.bandwidth
    if kernel.arithmetic is None:
        return memory, 0.0
    rounds = tf32 and kernel.arithmetic == "Float" and "TF32" in card.peaks
    peak = card.peaks.get("TF32" if rounds else kernel.arithmetic)
    if peak is None or kernel.flops is None:
        return memory, None
    return memory, kernel.flops / peak
