"""A card as people name it: by its memory, or by its name."""

from __future__ import annotations

from singlecard.engine.cards import CARDS, Card, find_card
from singlecard.errors import OptionError, TargetError
from singlecard.sizes import bytes_from_text


def memory_of_card(card: str | int | Card) -> tuple[str, int, str | None]:
    """Return how a card is called, its memory, and its target where it is one of the table.

    Raises:
        OptionError: it is neither a size with a unit nor a card that is known.
    """
    if isinstance(card, Card):
        return card.name, card.memory_bytes, card.target
    if isinstance(card, str) and not card.strip().isdecimal():
        try:
            return card.strip(), _positive(bytes_from_text(card)), None
        except ValueError:
            pass
        try:
            known = find_card(card)
            return known.name, known.memory_bytes, known.target
        except TargetError as error:
            names = ", ".join(known.name for known in CARDS)
            raise OptionError(
                f"card {card!r} is neither a size nor a card that is known: write its memory, such "
                f"as 12GiB, or one of {names}"
            ) from error
    if isinstance(card, int) and not isinstance(card, bool) and card > 0:
        return f"{card} bytes", card, None
    raise OptionError(
        f"card {card!r} is not valid: write its memory with a unit, such as 12GiB, or its name, "
        "such as RTX 4070"
    )


def _positive(size: int) -> int:
    if size <= 0:
        raise ValueError(size)
    return size


def memory_from(name: str, value: str | int) -> int:
    """Return a number of bytes that was given under a name.

    Raises:
        OptionError: it is no size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return bytes_from_text(str(value) if isinstance(value, str) else "")
    except ValueError as error:
        raise OptionError(
            f"{name} {value!r} is not valid: it takes bytes, or a text such as 500MiB"
        ) from error
