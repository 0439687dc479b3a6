"""``singlecard explain``: what a card will do, seen before there is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Model = Callable[[str], str]


def test_the_table_shows_kernels_traffic_and_cards(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """This is what one chooses a precision and a card by."""
    done = command("explain", model("small"), "--targets", "sm89", "--cache-dir", tmp_path)
    assert done.status == 0
    for words in ("kernels", "floor", "scratch", "Roofline", "RTX 4090", "100% of"):
        assert words in done.out
    assert "RTX 3090" not in done.out


def test_json_lists_every_kernel(command: Any, model: Model, tmp_path: Path) -> None:
    """Programs compare plans kernel by kernel."""
    done = command("explain", model("small"), "--cache-dir", tmp_path, "--json")
    (engine,) = done.document["engines"]
    assert engine["kernels"] == len(engine["report"]["kernels"]) >= 1
    assert {card["target"] for card in engine["roofline"]} == {
        "sm80", "sm86", "sm89", "sm120", "sm121"
    }  # fmt: skip


def test_a_page_is_written_beside_the_answer(command: Any, model: Model, tmp_path: Path) -> None:
    """A page can be sent to a colleague."""
    page = tmp_path / "page.html"
    given = ("explain", model("partly_lowered"), "--cache-dir", tmp_path / "cache")
    done = command(*given, "--html", page)
    assert done.status == 0 and page.name in done.out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and "bessel_j0" in text


@pytest.mark.parametrize("arguments", [("--html", "none/page.html"), ("--html", "."), ("--top=0",)])
def test_an_answer_with_no_place_to_go_is_refused_before_the_work(
    command: Any, model: Model, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Minutes of building would be lost to a slip in the last argument."""
    cache = tmp_path / "cache"
    done = command("explain", model("small"), "--cache-dir", cache, *arguments)
    assert done.status == 2 and arguments[0].partition("=")[0] in done.err
    assert not cache.exists()
