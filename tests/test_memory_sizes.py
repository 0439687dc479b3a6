"""Sizes of GPU memory, as cards and as the option ``memory_budget`` take them."""

from __future__ import annotations

from typing import Any

import pytest

from singlecard.errors import OptionError
from singlecard.memory_sizes import memory_from_text
from singlecard.options import Options


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 2**33), ("1.5 MiB", 3 * 2**19), ("512kib", 2**19), ("8GB", 8 * 10**9), ("7", 7)],
)
def test_binary_and_decimal_units_differ(text: str, size: int) -> None:
    """Cards are sold in GiB: 7 percent more than in GB."""
    assert memory_from_text(text) == size
    assert Options.parse({"memory_budget": text}).memory_budget == size


@pytest.mark.parametrize("value", ["", "GiB", "8GiBs", "-1GiB", "all", -1, 1.5, True, ["8GiB"]])
def test_other_budgets_are_refused(value: Any) -> None:
    """A budget that is misread is memory that another program had."""
    with pytest.raises(OptionError, match="memory_budget"):
        Options.parse({"memory_budget": value})


def test_bytes_are_taken_as_they_are() -> None:
    """0 streams as much as can be streamed; None streams nothing."""
    assert Options.parse({"memory_budget": 0}).memory_budget == 0
    assert Options.parse({}).memory_budget is None
