"""``singlecard calibrate``: from a model and data to a table that the other verbs take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard import CalibrationTable

Model = Callable[[str], str]

DATA = """
import torch

def calls():
    torch.manual_seed(1)
    return [torch.randn(2, 8) for _ in range(5)]

def raising():
    yield torch.ones(2, 8)
    raise KeyError("the third column")

def other_shape():
    return [torch.ones(2, 9)]

def number():
    return 3
"""


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str], str]:
    file = tmp_path / "calls_of_test.py"
    file.write_text(DATA)
    return lambda function: f"{file}:{function}"


def test_a_table_for_the_other_verbs(
    command: Any, model: Model, data: Model, tmp_path: Path
) -> None:
    """Scales that cannot be handed on are of no use."""
    out = tmp_path / "table.json"
    settings = ("--method", "percentile", "--percentile", "99", "--smoothing", "none")
    done = command(
        "calibrate", model("small"), "--data", data("calls"), "--out", out, *settings, "--json"
    )
    assert done.status == 0
    assert {key: done.document[key] for key in ("calls", "tensors", "smoothed", "method")} == {
        "calls": 5,
        "tensors": 2,
        "smoothed": 0,
        "method": "percentile",
    }
    table = CalibrationTable.load(out)
    assert (table.samples, table.percentile) == (5, 99)
    used = ("--precision", "int8", "--calibration", out, "--cache-dir", tmp_path / "cache")
    verified = command("verify", model("small"), *used, "--json")
    assert verified.status == 0 and len(verified.document["quantization"]) == 1
    assert command("explain", model("small"), *used).status == 0
    assert command("build", model("small"), *used).status == 0


def test_a_person_sees_what_was_done(
    command: Any, model: Model, data: Model, tmp_path: Path
) -> None:
    """The summary tells whether the data was what one thinks it was."""
    given = ("calibrate", model("small"), "--out", tmp_path / "table.json")
    done = command(*given, "--data", data("calls"), "--weights", "int4", "--no-bias-correction")
    assert done.status == 0
    for words in ("calls", "min-max", "read by 2 ops", "beyond FP16's range", "table.json"):
        assert words in done.out
    assert "one call is little" not in done.out
    assert not any(s.means for s in CalibrationTable.load(tmp_path / "table.json").tensors.values())


def test_without_data(command: Any, model: Model, tmp_path: Path) -> None:
    """The examples of a model make a table to try things with, and it says that it is no more."""
    done = command("calibrate", model("small"), "--out", tmp_path / "table.json")
    assert done.status == 0 and "one call is little: give some tens with --data" in done.out


BAD: list[tuple[tuple[str, ...], str]] = [
    (("--data", "DATA:missing"), "has no function missing: did you mean"),
    (("--data", "DATA:number"), "returned int: it must return an iterable of calls"),
    (("--data", "DATA:raising"), "calls_of_test.py:10: 'the third column'"),
    (("--data", "DATA:other_shape"), "RuntimeError for call 1 of the calibration data"),
    (("--data", "nothing"), "--data 'nothing' names no function"),
    (("--method", "max"), "method='max' is not valid"),
    (("--smoothing", "much"), "--smoothing much is not valid"),
    (("--smoothing", "2"), "smoothing=2.0 is not valid"),
    (("--weights", "int2"), "weights='int2' is not valid"),
    (("--percentile", "200"), "percentile=200.0 is not valid"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input(
    command: Any, model: Model, data: Model, tmp_path: Path, given: tuple[str, ...], said: str
) -> None:
    """One line that leads to the mistake, exit status 2, and no file."""
    arguments = [data(item[5:]) if item.startswith("DATA:") else item for item in given]
    done = command("calibrate", model("small"), "--out", tmp_path / "table.json", *arguments)
    assert done.status == 2 and said in done.err
    assert not (tmp_path / "table.json").exists()


def test_a_place_that_cannot_be_written_to(command: Any, model: Model, tmp_path: Path) -> None:
    """Found before minutes of calibration."""
    for out in (tmp_path, tmp_path / "missing" / "table.json"):
        done = command("calibrate", model("small"), "--out", out)
        assert done.status == 2 and "--out" in done.err and "existing folder" in done.err


def test_a_table_of_another_model(command: Any, model: Model, data: Model, tmp_path: Path) -> None:
    """Wrong scales would pass for a model that INT8 does not suit."""
    out = tmp_path / "table.json"
    command("calibrate", model("small"), "--data", data("calls"), "--out", out)
    given = ("--precision", "int8", "--calibration", out, "--cache-dir", tmp_path / "cache")
    done = command("verify", f"{__file__}:wider", *given)
    assert done.status == 2 and "made for another model" in done.err


def wider() -> Any:
    import torch

    return torch.nn.Sequential(torch.nn.Linear(8, 4)).eval(), (torch.ones(2, 8),)


def test_options_of_precision(command: Any, model: Model, tmp_path: Path) -> None:
    """What Python takes, the command line takes."""
    given = ("--precision", "fp16", "--keep-fp32", "0,2:linear", "--sparse-weights")
    done = command("verify", model("small"), *given, "--cache-dir", tmp_path, "--json")
    assert done.status == 0
    missing = command("verify", model("small"), "--precision", "int8")
    assert missing.status == 2 and "needs scales" in missing.err
    no_file = command("verify", model("small"), "--precision", "int8", "--calibration", "none.json")
    assert no_file.status == 2 and "none.json cannot be read" in no_file.err
    lacking = command("verify", model("small"), "--precision", "int4-weight", "--targets", "sm75")
    assert lacking.status == 2 and "int4 is not available on target sm75" in lacking.err
