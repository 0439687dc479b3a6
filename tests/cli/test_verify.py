"""``singlecard verify``: a CI job goes red when answers change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Model = Callable[[str], str]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "tf32"])
def test_a_good_model_passes_at_its_precision(
    command: Any, model: Model, tmp_path: Path, precision: str
) -> None:
    """A default that is too tight would fail every model, one too loose pass every mistake."""
    done = command(
        "verify", model("small"), "--precision", precision, "--cache-dir", tmp_path, "--json"
    )
    assert done.status == 0 and done.document["passed"]
    assert done.document["relative_l2"] <= done.document["tolerance"]


def test_a_tolerance_that_is_missed_is_status_1(command: Any, model: Model, tmp_path: Path) -> None:
    """The exit status is all that a CI job looks at."""
    given = ("verify", model("small"), "--precision", "fp16", "--cache-dir", tmp_path)
    done = command(*given, "--tolerance", "1e-9", "--json")
    assert done.status == 1
    assert not done.document["passed"] and done.document["relative_l2"] > 1e-9


def test_the_table_shows_error_and_limit(command: Any, model: Model, tmp_path: Path) -> None:
    """A person wants to see how close it was."""
    done = command("verify", model("small"), "--tolerance", "0.25", "--cache-dir", tmp_path)
    assert done.status == 0
    assert "relative L2 error" in done.out and "at most 2.5e-01 passes" in done.out


def test_an_fp16_model_is_not_held_to_fp32(command: Any, model: Model, tmp_path: Path) -> None:
    """Two right FP16 answers differ in their last bit."""
    done = command("verify", model("half"), "--cache-dir", tmp_path, "--json")
    assert done.status == 0 and done.document["tolerance"] == 5e-3


def test_a_model_without_engines_does_not_pass(command: Any, model: Model, tmp_path: Path) -> None:
    """PyTorch equals itself: a green check on that would hide that nothing was lowered."""
    done = command("verify", model("not_lowered"), "--cache-dir", tmp_path)
    assert done.status == 1 and "no engine to verify" in done.out


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_means_nothing_is_refused(
    command: Any, model: Model, tolerance: str
) -> None:
    """With NaN every comparison is false, and every model would fail."""
    done = command("verify", model("small"), f"--tolerance={tolerance}")
    assert done.status == 2 and "--tolerance" in done.err
