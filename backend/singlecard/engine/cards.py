"""What real cards can do, and the least time in which each could run a plan.

The roofline is a bound, not a forecast: for each kernel the longer of two times, that of moving
its bytes at the card's full memory bandwidth and that of its multiplications at the card's full
rate, added up. A real run is slower. It is good for comparing two plans of one model on one card.

Peaks are dense rates (no 2:4 sparsity) at boost clock, the highest that the vendor publishes for
the type: for Half on GeForce that is with FP16 accumulation, twice the rate with FP32, since the
builder's log does not tell which one a kernel will use, and a bound must hold for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.errors import TargetError

GB = 10**9
TERA = 10**12


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        name: as the vendor writes it.
        target: its compute capability, a name for ``targets``.
        memory_bytes: its memory.
        bandwidth: of that memory, in bytes a second.
        peaks: operations a second by arithmetic (``Half``, ``Int8``, ``TF32``, ...). A type that
            is missing is one the card lacks, or for which the vendor publishes nothing.
    """

    name: str
    target: str
    memory_bytes: int
    bandwidth: float
    peaks: dict[str, float] = field(hash=False)


def _card(
    name: str, target: str, memory_gb: int, gb_per_second: float, **tera_per_second: float
) -> Card:
    peaks = {dtype: rate * TERA for dtype, rate in tera_per_second.items()}
    return Card(name, target, memory_gb * GB, gb_per_second * GB, peaks)


CARDS = (
    # NVIDIA Turing GPU Architecture whitepaper (WP-09183-001), tables for Tesla T4 and for the
    # reference GeForce RTX 2080 Ti.
    _card("T4", "sm75", 16, 320, Float=8.1, Half=65, Int8=130),
    _card("RTX 2080 Ti", "sm75", 11, 616, Float=13.4, Half=107.6, Int8=215.2),
    # NVIDIA A100 datasheet, A100 80GB PCIe.
    _card(
        "A100 80GB", "sm80", 80, 1935, Float=19.5, TF32=156, Half=312, BFloat16=312, Int8=624
    ),
    # NVIDIA A10 datasheet.
    _card("A10", "sm86", 24, 600, Float=31.2, TF32=62.5, Half=125, BFloat16=125, Int8=250),
    # NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A.
    _card("RTX 3090", "sm86", 24, 936, Float=35.6, TF32=35.6, Half=142, BFloat16=71, Int8=284),
    # 28 multiprocessors at 1.777 GHz with the rates of the GA102 whitepaper; agrees with the
    # 12.7 (Float) and 101 (Half, sparse) tera-operations that the vendor publishes for the card.
    _card(
        "RTX 3060 12GB", "sm86", 12, 360, Float=12.7, TF32=12.7, Half=50.9, BFloat16=25.5, Int8=101.9
    ),
    # NVIDIA L4 datasheet; its figures are with sparsity, these are half of them.
    _card(
        "L4", "sm89", 24, 300, Float=30.3, TF32=60, Half=121, BFloat16=121, FP8=242.5, Int8=242.5
    ),
    # NVIDIA Ada GPU Architecture whitepaper v2, appendix A.
    _card(
        "RTX 4090",
        "sm89",
        24,
        1008,
        Float=82.6,
        TF32=82.6,
        Half=330.3,
        BFloat16=165.2,
        FP8=660.6,
        Int8=660.6,
    ),
    # 46 multiprocessors at 2.475 GHz with the rates of the Ada whitepaper; agrees with the 29
    # (Float) and 466 (FP8, sparse) tera-operations that the vendor publishes for the card.
    _card(
        "RTX 4070",
        "sm89",
        12,
        504,
        Float=29.1,
        TF32=29.1,
        Half=116.6,
        BFloat16=58.3,
        FP8=233.2,
        Int8=233.2,
    ),
    # NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A.
    _card(
        "RTX 5090",
        "sm120",
        32,
        1792,
        Float=104.8,
        TF32=104.8,
        Half=419,
        BFloat16=209.5,
        FP8=838,
        Int8=838,
    ),
    # 48 multiprocessors at 2.512 GHz with the rates of the Blackwell whitepaper; agrees with the
    # 988 (FP4, sparse) tera-operations that the vendor publishes for the card.
    _card(
        "RTX 5070",
        "sm120",
        12,
        672,
        Float=30.9,
        TF32=30.9,
        Half=123.5,
        BFloat16=61.7,
        FP8=246.9,
        Int8=246.9,
    ),
    # NVIDIA DGX Spark datasheet: bandwidth and memory; of its rates it gives FP4 with sparsity only.
    _card("DGX Spark (GB10)", "sm121", 128, 273),
)


def find_card(name: str) -> Card:
    """Return the card of that name; case and spaces do not count.

    Raises:
        TargetError: the card is not in the table.
    """
    for card in CARDS:
        if _folded(card.name) == _folded(name):
            return card
    raise TargetError(
        f"unknown card {name!r}: rates are known for {', '.join(card.name for card in CARDS)}"
    )


def _folded(name: str) -> str:
    return "".join(name.lower().split())


def cards_of(targets: Iterable[str] | None) -> tuple[Card, ...]:
    """Return the cards that an engine for these targets runs on; all, if there are none given."""
    chosen = set(targets or ())
    return tuple(card for card in CARDS if not chosen or card.target in chosen)


@dataclass(frozen=True)
class Roofline:
    """The least time of a plan on a card.

    Attributes:
        card: the card.
        seconds: of all kernels together; launches are not counted, as a CUDA graph hides them.
        kernel_seconds: of each kernel, in the plan's order.
        bound_by_arithmetic: number of kernels whose arithmetic takes longer than their memory.
        unrated: number of kernels that multiply in a type without a published rate; their time
            is that of their memory alone, and the true bound may be higher.
    """

    card: Card
    seconds: float
    kernel_seconds: tuple[float, ...]
    bound_by_arithmetic: int
    unrated: int


def roofline(report: PlanReport, card: Card, tf32: bool = False) -> Roofline | None:
    """Return the least time of a plan on a card; None if its sizes depend on the call.

    Args:
        report: the plan.
        card: from `CARDS`, or one of your own.
        tf32: whether the engine was built to round FP32 products to TF32, which no log tells.
    """
    times = [_times(kernel, card, tf32) for kernel in report.kernels]
    known = [item for item in times if item is not None]
    if len(known) < len(times):
        return None
    seconds = tuple(max(memory, arithmetic or 0.0) for memory, arithmetic in known)
    return Roofline(
        card=card,
        seconds=sum(seconds),
        kernel_seconds=seconds,
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
    rounded = tf32 and kernel.arithmetic == "Float" and "TF32" in card.peaks
    peak = card.peaks.get("TF32" if rounded else kernel.arithmetic)
    if peak is None or kernel.flops is None:
        return memory, None
    return memory, kernel.flops / peak
