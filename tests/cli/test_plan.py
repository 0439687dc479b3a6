"""``singlecard plan``: does it fit, before the card is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Model = Callable[[str], str]


def test_the_table_tells_what_fits_and_what_to_ask_for(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """The question that people have before they buy a card."""
    done = command("plan", model("small"), "--card", "12GiB", "--cache-dir", tmp_path)
    assert done.status == 0
    for words in ("weights", "scratch", "fits", "fp16", "int8-weight", "int4-weight", "yes *"):
        assert words in done.out
    assert "take precision='fp16' for batch 8" in done.out


def test_json_holds_every_row(command: Any, model: Model, tmp_path: Path) -> None:
    """Programs choose a precision by it."""
    given = ("plan", model("small"), "--card", "RTX 4070", "--cache-dir", tmp_path)
    done = command(*given, "--precision", "fp32,fp16", "--batches", "1,4", "--json")
    assert done.status == 0 and done.document["card_bytes"] == 12 * 10**9
    rows = [(row["precision"], row["batch"]) for row in done.document["rows"]]
    assert rows == [("fp32", 1), ("fp16", 1), ("fp32", 4), ("fp16", 4)]
    assert all(row["weights_bytes"] > 0 for row in done.document["rows"])


def test_the_reserve_counts(command: Any, model: Model, tmp_path: Path) -> None:
    """A program that shares the card with others must leave them their part; 1 is a no."""
    given = ("plan", model("small"), "--cache-dir", tmp_path, "--precision", "fp16")
    assert command(*given, "--batches", "1", "--card", "1GiB").status == 0
    tight = command(*given, "--batches", "1", "--card", "1GiB", "--reserve", "1GiB", "--json")
    assert tight.status == 1
    assert tight.document["fits"] is False
    assert "Nothing fits" in command(*given, "--card", "100kB", "--batches", "1").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--card"),
        (("--card", "GTX 9999"), "GTX 9999"),
        (("--card", "12GiB", "--batches", "1,two"), "--batches '1,two'"),
        (("--card", "12GiB", "--lengths", "0"), "--lengths '0'"),
        (("--card", "12GiB", "--memory-budget", "1GiB"), "--memory-budget"),
        (("--card", "12GiB", "--precision", "int8"), "needs scales"),
        (("--card", "12GiB", "--precision", "fp61"), "fp61"),
    ],
)
def test_bad_arguments_are_refused(
    command: Any, model: Model, arguments: tuple[str, ...], said: str
) -> None:
    """A slip in one argument is named, and nothing is built."""
    done = command("plan", model("small"), *arguments)
    assert done.status == 2 and said in done.err and not done.out


def test_a_budget_is_given_to_build(command: Any, model: Model, tmp_path: Path) -> None:
    """What plan recommends, build takes; the engine is another than one that streams nothing."""
    given = ("build", model("small"), "--cache-dir", tmp_path, "--json")
    plain = command(*given)
    streamed = command(*given, "--memory-budget", "8GiB")
    digests = [done.document["engines"][0]["digest"] for done in (plain, streamed)]
    assert plain.status == streamed.status == 0 and digests[0] != digests[1]
