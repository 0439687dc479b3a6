"""One range of sizes, in every form that people write it in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch.export import Dim

from singlecard.axes import LARGEST, Range, axes_from_text, range_from
from singlecard.errors import OptionError

FORMS = {
    "two sizes": (2, 16),
    "a list, as JSON has it": [2, 16],
    "numpy's integers": (np.int64(2), np.int32(16)),
    "a named Dim": Dim("batch", min=2, max=16),
    "a hint with ends": Dim.DYNAMIC(min=2, max=16),
    "a range": Range(2, None, 16),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_a_range_are_one_range(form: str) -> None:
    """An engine that depends on how its range is written is built twice, and found once."""
    assert range_from(FORMS[form], "x") == Range(2, None, 16)


def test_sizes_that_are_given_and_those_that_are_not() -> None:
    """The size to tune for is the user's, and else does not depend on the example."""
    assert range_from((2, 4, 16), "x") == range_from("2:4:16", "x") == Range(2, 4, 16)
    assert Range(2, 4, 16).closed(1, 99) == (2, 4, 16)
    assert Range(2, None, 32).closed(1, 99) == (2, 8, 32)
    assert Range(None, None, 32).closed(2, 99) == (2, 8, 32)
    assert Range(128, None, None).closed(2, 64) == (128, 128, 128)


def test_what_does_not_vary() -> None:
    """PyTorch's own words for a fixed axis must not become an open range."""
    for given in (None, Dim.STATIC, ""):
        assert range_from(given, "x") is None
    for given in (8, "8", (8, 8), (8, 8, 8)):
        found = range_from(given, "x")
        assert found is not None and found.fixed == 8


def test_open_ends() -> None:
    """Dim begins at 0 and ends at infinity, which are no sizes of an engine."""
    for given in (Dim.DYNAMIC, Dim("n"), (None, None)):
        assert range_from(given, "x") == Range()
    assert range_from(Dim("n", max=8), "x") == Range(None, None, 8)
    automatic = range_from(Dim.AUTO, "x")
    assert automatic is not None and automatic.optional


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((16, 2), "min 16 > max 2"),
        ((2, 1, 16), "2, 1, 16, it takes min <= opt <= max"),
        ((2, 17, 16), "min <= opt <= max"),
        ((0, 16), "sizes are integers >= 1"),
        ((-1, 16), ">= 1"),
        ((2, LARGEST + 1), f"at most {LARGEST}"),
        ((2, 2.5), "2.5"),
        ((2, float("nan")), "nan"),
        ((True, 16), "True"),
        ((2,), r"\(min, max\) or \(min, opt, max\)"),
        ((1, 2, 3, 4), r"\(min, max\) or \(min, opt, max\)"),
        ((), r"\(min, max\)"),
        ("2:", "no size"),
        ("16:4:2", "min <= opt <= max"),
        ("2:16", "2:16:16"),
        ("0:1:2", ">= 1"),
        ("٣", "no size"),
        (b"2:4", "min:opt:max"),
        ({2: 16}, "min:opt:max"),
        (True, "min:opt:max"),
        (0, ">= 1"),
        (object(), "min:opt:max"),
        (slice(2, 16), "min:opt:max"),
    ],
)
def test_what_is_no_range(given: Any, words: str) -> None:
    """Read as another, it builds the wrong engine; unread, it ends in an error of Python's."""
    with pytest.raises(OptionError, match=words) as refused:
        range_from(given, "axis 3 of x")
    assert str(refused.value).startswith("axis 3 of x")


def test_a_text_and_what_it_says_are_one() -> None:
    """A build file's state is compared by these texts."""
    axes = axes_from_text(["ids=1:8:32,,128"])
    assert axes == {"ids": {0: Range(1, 8, 32), 2: Range(128, 128, 128)}}
