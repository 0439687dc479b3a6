"""What real cards can do, as their vendor publishes it.

Rates are dense (no 2:4 sparsity) at boost clock, the highest that is published for the type: for
Half on GeForce that is with FP16 accumulation, twice the rate with FP32. The builder's log does not
tell which of the two a kernel will use, and a bound on its time must hold for both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from singlecard.errors import TargetError
from singlecard.targets import PORTABLE

_GIGA, _TERA = 10**9, 10**12


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        name: as the vendor writes it.
        target: its compute capability, a name for the option ``targets``.
        memory_bytes: its memory.
        bandwidth: of that memory, in bytes a second.
        peaks: operations a second by arithmetic (``Half``, ``Int8``, ``TF32``, ...). A type is
            missing if the card lacks it, or if the vendor publishes no rate for it.
    """

    name: str
    target: str
    memory_bytes: int
    bandwidth: float
    peaks: dict[str, float] = field(hash=False)


# Sources, all by NVIDIA: Turing GPU Architecture whitepaper WP-09183-001 (T4, RTX 2080 Ti reference
# card); datasheets of A100 80GB PCIe, A10 and L4 (the last gives rates with sparsity: here are
# half of them); Ampere GA102, Ada v2 and RTX Blackwell GPU Architecture whitepapers, appendix A
# (RTX 3090, 4090, 5090). RTX 3060, 4070 and 5070 have 28, 46 and 48 multiprocessors at 1.777, 2.475
# and 2.512 GHz, with the rates per clock of these whitepapers; the results agree with the 12.7, 29
# and 30.9 (Float) and, with sparsity, 101 (Half), 466 (FP8) and 988 (FP4) tera-operations that the
# vendor publishes. Of DGX Spark it publishes no dense rates.
_TYPES = ("Float", "TF32", "Half", "BFloat16", "FP8", "Int8")
_TABLE: tuple[tuple[str, str, int, int, tuple[float | None, ...]], ...] = (
    # name, target, memory in GB, GB/s, tera-operations/s in the order of _TYPES
    ("T4", "sm75", 16, 320, (8.1, None, 65, None, None, 130)),
    ("RTX 2080 Ti", "sm75", 11, 616, (13.4, None, 107.6, None, None, 215.2)),
    ("A100 80GB", "sm80", 80, 1935, (19.5, 156, 312, 312, None, 624)),
    ("A10", "sm86", 24, 600, (31.2, 62.5, 125, 125, None, 250)),
    ("RTX 3090", "sm86", 24, 936, (35.6, 35.6, 142, 71, None, 284)),
    ("RTX 3060", "sm86", 12, 360, (12.7, 12.7, 50.9, 25.5, None, 101.9)),
    ("L4", "sm89", 24, 300, (30.3, 60, 121, 121, 242.5, 242.5)),
    ("RTX 4090", "sm89", 24, 1008, (82.6, 82.6, 330.3, 165.2, 660.6, 660.6)),
    ("RTX 4070", "sm89", 12, 504, (29.1, 29.1, 116.6, 58.3, 233.2, 233.2)),
    ("RTX 5090", "sm120", 32, 1792, (104.8, 104.8, 419, 209.5, 838, 838)),
    ("RTX 5070", "sm120", 12, 672, (30.9, 30.9, 123.5, 61.7, 246.9, 246.9)),
    ("DGX Spark", "sm121", 128, 273, (None, None, None, None, None, None)),
)


def _peaks(rates: tuple[float | None, ...]) -> dict[str, float]:
    pairs = zip(_TYPES, rates, strict=True)
    return {dtype: rate * _TERA for dtype, rate in pairs if rate is not None}


CARDS = tuple(
    Card(name, target, memory * _GIGA, float(speed * _GIGA), _peaks(rates))
    for name, target, memory, speed, rates in _TABLE
)


def find_card(name: str) -> Card:
    """Return the card of that name; case and spaces do not count.

    >>> find_card("rtx4090").target
    'sm89'

    Raises:
        TargetError: the card is not in the table.
    """
    for card in CARDS:
        if _folded(card.name) == _folded(name):
            return card
    known = ", ".join(card.name for card in CARDS)
    raise TargetError(f"unknown card {name!r}: name one of {known}, or pass a Card of your own")


def _folded(name: str) -> str:
    return "".join(name.lower().split())


def cards_of(targets: Iterable[str] = ()) -> tuple[Card, ...]:
    """Return the cards that an engine for these targets runs on; no targets means portable."""
    chosen = set(targets) or set(PORTABLE)
    return tuple(card for card in CARDS if card.target in chosen)
