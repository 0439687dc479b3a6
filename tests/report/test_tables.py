"""What a person reads of a verification and of built engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from singlecard.engine.build import Engine
from singlecard.engine.plan_report import PlanReport
from singlecard.report.tables import engines_table, fallback_rows, text_of, verify_table
from singlecard.report.verify import VerifyReport

PLAN = PlanReport((), (), (), 10, 4_000_000, 8_300_000, 4_100_000)
REPORT = VerifyReport(
    coverage=0.75,
    fallback=[("aten.nonzero", "its size [depends] on values")] * 2 + [("aten.x", "none")],
    engines=2,
    built=1,
    ops=12,
    max_abs_error=0.5,
    max_rel_error=0.25,
    relative_l2=1.25e-3,
    mismatch=None,
    outputs=None,
    expected=None,
    plans=[PLAN, PLAN],
    timings={"total": 3.5, "build": 2.25},
)


def test_a_verification_shows_coverage_error_and_sizes() -> None:
    """The four numbers that decide whether a model ships."""
    text = str(REPORT)
    for words in ("75% of 12", "3 left to PyTorch", "1.25e-03", "8.2 MB", "1 built now"):
        assert words in text
    assert "1 found in the cache" in text and "3.5 s" in text and "2.2 s for engines" in text


def test_ops_left_out_are_grouped_and_their_reasons_kept_as_they_are() -> None:
    """A hundred equal rows hide the one that matters; brackets are not markup."""
    text = str(REPORT)
    assert "its size [depends] on values" in text
    (row,) = [line for line in text.splitlines() if "aten.nonzero" in line]
    assert row.split()[:2] == ["aten.nonzero", "2"]


def test_a_mismatch_stands_beside_the_error() -> None:
    """An infinite error with no word of why would send the user to the debugger."""
    wrong = dataclasses.replace(
        REPORT, relative_l2=float("inf"), mismatch="output 0 has shape [2] instead of [3]"
    )
    assert "output 0 has shape [2] instead of [3]" in text_of(verify_table(wrong, 1e-3))


def test_a_limit_is_shown_if_there_is_one() -> None:
    """Whether 1e-3 is good depends on it."""
    assert "at most 5.0e-03 passes" in text_of(verify_table(REPORT, 5e-3))
    assert "passes" not in text_of(verify_table(REPORT))


def test_an_engine_is_named_by_what_cache_show_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path cut to the width of the terminal cannot be copied."""
    monkeypatch.setenv("COLUMNS", "80")
    plan = Path("/a/very/long/folder/" * 5) / "engine.plan"
    engine = Engine("0123456789abcdef" * 4, plan, PLAN, True, 1.5)
    found = dataclasses.replace(engine, built=False, seconds=0.0)
    text = text_of(engines_table([engine, found], "sm89"))
    assert "0123456789ab" in text and "built in 1.5 s" in text and "found" in text
    assert text.count(str(plan)) == 2


def test_rows_count_equal_reasons_and_lines() -> None:
    """The most frequent is the one to work on first."""
    rows = fallback_rows([("a", "r", "1"), ("b", "r", "2"), ("b", "r", "2")])
    assert [(row.op, row.times, row.line) for row in rows] == [("b", 2, "2"), ("a", 1, "1")]
