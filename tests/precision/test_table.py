"""Calibration tables are files: they get cut off, edited, and given to the wrong model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.errors import CalibrationError
from singlecard.precision.table import CalibrationTable, TensorScale, differences

LINEAR = {"op": "linear", "tensors": ["a:linear/input"], "shape": [4, 2], "weights": "00"}
CONVOLUTION = {
    "op": "convolution",
    "tensors": ["b:convolution/input"],
    "shape": [4, 2, 3, 3],
    "weights": "11",
}
GRAPH = {"a:linear": LINEAR, "b:convolution": CONVOLUTION}
TABLE = CalibrationTable(
    "percentile",
    3,
    (GRAPH,),
    {
        "a:linear/input": TensorScale(1.5, 2.0, divisor=(1.0, 0.5), means=(0.1, -0.2)),
        "b:convolution/input": TensorScale(0.25, 0.5, means=(0.0,) * 4, statistics={"batches": 3}),
    },
    {"a:linear": "int8-weight"},
    ("b:add",),
    99.9,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """A table that lost something on disk would give other answers than the one in memory."""
    TABLE.save(tmp_path / "table.json")
    assert CalibrationTable.load(tmp_path / "table.json") == TABLE
    assert [file.name for file in tmp_path.iterdir()] == ["table.json"]


def test_the_file_is_for_people(tmp_path: Path) -> None:
    """A hundred thousand lines of numbers cannot be edited by hand, or compared by git."""
    TABLE.save(tmp_path / "table.json")
    lines = (tmp_path / "table.json").read_text().splitlines()
    assert '   "divisor": [1.0, 0.5],' in lines
    assert '   "threshold": 1.5,' in lines


def test_a_table_that_cannot_be_written(tmp_path: Path) -> None:
    """Calibration takes minutes: its end must not be a traceback."""
    with pytest.raises(CalibrationError, match="cannot be written.*existing folder"):
        TABLE.save(tmp_path / "missing" / "table.json")


@pytest.mark.parametrize("share", [0, 1, 50, 99])
def test_a_file_that_is_cut_off(tmp_path: Path, share: int) -> None:
    """Half of a table must not become a model with half of its scales."""
    TABLE.save(file := tmp_path / "table.json")
    text = file.read_text().rstrip()
    file.write_text(text[: len(text) * share // 100])
    with pytest.raises(CalibrationError, match=r"table\.json is cut off or damaged"):
        CalibrationTable.load(file)


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """Another file by mistake, or none: the message names it."""
    file = tmp_path / "table.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CalibrationError, match=r"table\.json cannot be read"):
        CalibrationTable.load(file)


def test_an_entry_that_stands_there_twice(tmp_path: Path) -> None:
    """JSON takes the last of both: an edit of the first would be ignored."""
    TABLE.save(file := tmp_path / "table.json")
    text = file.read_text().replace('"threshold": 1.5,', '"threshold": 1.5, "threshold": 9,')
    file.write_text(text)
    with pytest.raises(CalibrationError, match="'threshold' stands there twice"):
        CalibrationTable.load(file)


def in_tensor(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values["tensors"]["a:linear/input"].update(changes)


def at_top(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda values: values.update(changes)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def edit(values: dict[str, Any]) -> None:
        del values[key]

    return edit


WRONG: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (at_top(format="other"), "it has no"),
    (at_top(version=2), "has version 2, this singlecard reads version 1: calibrate again"),
    (without("tensors"), "it lacks tensors"),
    (at_top(tensor={}), "it has tensor, which nothing reads: did you mean tensors"),
    (at_top(samples=-1), "samples is -1"),
    (at_top(samples=True), "samples is True"),
    (at_top(method=3), "method is 3"),
    (at_top(percentile=0), "percentile is 0"),
    (at_top(graphs={}), "graphs is no list"),
    (at_top(graphs=[{"a:linear": 1}]), "no list of tensors for a:linear"),
    (at_top(tensors=[]), "tensors is list, no object"),
    (at_top(keep_fp32="b:add"), "keep_fp32 is no list"),
    (at_top(assignment={"a:linear": "int7"}), "a:linear is assigned to 'int7'"),
    (at_top(assignment={"a:lineal": "int8"}), "a:lineal.*did you mean a:linear"),
    (in_tensor(threshold=-1.0), "threshold of a:linear/input is -1.0, and must be above zero"),
    (in_tensor(threshold=0), "threshold of a:linear/input is 0"),
    (in_tensor(threshold="1.5"), "threshold of a:linear/input is '1.5', no number"),
    (in_tensor(threshold=True), "threshold of a:linear/input is True"),
    (in_tensor(threshold=10**400), "threshold of a:linear/input is not finite"),
    (in_tensor(threshold=None), "threshold of a:linear/input is None"),
    (in_tensor(treshold=1.0), "a:linear/input has treshold.*did you mean threshold"),
    (in_tensor(divisor=[1.0]), "divisor of a:linear/input has 1 numbers, and its weight 2"),
    (in_tensor(divisor=[1.0, -2.0]), "divisor of a:linear/input is -2.0"),
    (in_tensor(divisor=3), "divisor of a:linear/input is 3, no list"),
    (in_tensor(weights_divisor=[1.0] * 3), "weights_divisor of a:linear/input has 3 numbers"),
    (in_tensor(means=[1.0] * 3), "means of a:linear/input has 3 numbers"),
    (in_tensor(statistics=[1]), "statistics of a:linear/input are list"),
    (
        lambda v: v["tensors"]["b:convolution/input"].update(divisor=[1.0, 1.0]),
        "divisor of b:convolution/input is not possible: convolution reads",
    ),
    (
        lambda v: v["tensors"]["b:convolution/input"].update(means=[1.0] * 3),
        "means of b:convolution/input has 3 numbers",
    ),
    (
        lambda v: v["tensors"].update({"a:linear/imput": {"threshold": 1}}),
        "a:linear/imput, which nothing reads: did you mean a:linear/input",
    ),
]


@pytest.mark.parametrize(("edit", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_edit_names_its_entry(edit: Callable[[dict[str, Any]], None], said: str) -> None:
    """Whoever edits a table by hand must be led to the line, and never to a silent bad scale."""
    values = json.loads(json.dumps(TABLE.to_dict()))
    edit(values)
    with pytest.raises(CalibrationError, match=said):
        CalibrationTable.from_dict(values, "table.json")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none(tmp_path: Path, text: str) -> None:
    """Python's JSON reads NaN gladly; a scale of NaN makes every answer NaN."""
    TABLE.save(file := tmp_path / "table.json")
    file.write_text(file.read_text().replace('"threshold": 1.5', f'"threshold": {text}'))
    with pytest.raises(CalibrationError, match=f"{text} is no number"):
        CalibrationTable.load(file)


def test_good_edits() -> None:
    """A threshold set by a person is used; an entry taken out is missing, and no error."""
    values = json.loads(json.dumps(TABLE.to_dict()))
    values["tensors"]["a:linear/input"] = {"threshold": 7}
    del values["tensors"]["b:convolution/input"]
    del values["assignment"]
    table = CalibrationTable.from_dict(values)
    assert table.tensors["a:linear/input"] == TensorScale(7.0, 7.0)
    assert table.missing == ("b:convolution/input",)
    assert table.assignment == {}


def test_its_own_model_passes() -> None:
    """Any of its graphs, and a part of a model that has nothing to quantize."""
    table = dataclasses.replace(TABLE, graphs=({"c:linear": LINEAR}, GRAPH))
    table.check(GRAPH)
    table.check({"c:linear": LINEAR})
    table.check({})


OTHERS: list[tuple[dict[str, Any], str]] = [
    ({**GRAPH, "c:linear": LINEAR}, "it lacks c:linear, which the model has"),
    ({"a:linear": LINEAR}, "it has b:convolution, which the model lacks"),
    ({**GRAPH, "a:linear": {**LINEAR, "shape": [4, 8]}}, r"a:linear has another shape \(\[4, 2\]"),
    ({**GRAPH, "a:linear": {**LINEAR, "op": "embedding"}}, "a:linear is another op"),
    ({**GRAPH, "a:linear": {**LINEAR, "weights": "22"}}, "the weights of a:linear have changed"),
    ({**GRAPH, "a:linear": {**LINEAR, "tensors": ["x"]}}, "its ops read other tensors"),
    ({f"{n}:linear": LINEAR for n in range(9)}, "0:linear, 1:linear, .* and 4 more"),
]


@pytest.mark.parametrize(("met", "said"), OTHERS, ids=[said for _, said in OTHERS])
def test_another_model_is_told_by_what_differs(met: dict[str, Any], said: str) -> None:
    """Scales of another model give answers that look like answers."""
    with pytest.raises(CalibrationError, match="made for another model") as caught:
        TABLE.check(met)
    assert re.search(said, str(caught.value))
    assert differences(GRAPH, met)
