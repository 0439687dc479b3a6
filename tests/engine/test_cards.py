"""The table of cards, and what it says of each other."""

from __future__ import annotations

import pytest

from singlecard.engine.cards import CARDS, cards_of, find_card
from singlecard.errors import TargetError
from singlecard.targets import PORTABLE, TARGETS


def test_every_target_has_a_card() -> None:
    """Else an engine can be built for which explain has no time to show."""
    assert {card.target for card in CARDS} == set(TARGETS)


def test_portable_engines_have_the_portable_cards() -> None:
    """Else a time is shown for a card that cannot load the engine."""
    assert {card.target for card in cards_of()} == set(PORTABLE)
    assert [card.name for card in cards_of(["sm75"])] == ["T4", "RTX 2080 Ti"]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_rates_agree_with_the_architecture(card) -> None:  # type: ignore[no-untyped-def]
    """Else a slip of the keyboard makes INT8 look better or worse than it is."""
    assert card.memory_bytes >= 11e9 and 200e9 < card.bandwidth < 2000e9
    peaks = card.peaks
    if not peaks:
        return
    # On all of these a multiprocessor does twice as many Int8 products as Half ones.
    assert peaks["Int8"] == pytest.approx(2 * peaks["Half"], rel=0.01)
    assert peaks.get("FP8", peaks["Int8"]) == peaks["Int8"]
    assert 4 * peaks["Float"] <= peaks["Half"] * 1.05
    assert ("BFloat16" in peaks) == ("TF32" in peaks) == (card.target != "sm75")
    assert ("FP8" in peaks) == (card.target in ("sm89", "sm120"))


def test_a_card_is_found_by_name() -> None:
    """Else a user must know how the table spells a card, and a typo ends in a KeyError."""
    assert find_card("rtx 4090").bandwidth == 1008e9
    with pytest.raises(TargetError, match=r"unknown card 'RTX 9090'.*RTX 4090"):
        find_card("RTX 9090")
