"""Tables of parts of the data become the table of all of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard import CalibrationTable
from singlecard.errors import CalibrationError, OptionError

INPUT = "0:linear/input"


def model(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4)).eval()


def data(count: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 8, generator=generator) * (1 + place) for place in range(count)]


def table_of(calls: list[Tensor], **settings: Any) -> CalibrationTable:
    return singlecard.calibrate(model(), calls, **{"smoothing": None, **settings})


@pytest.mark.parametrize("method", ["min-max", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("cuts", [(2,), (1, 5)])
def test_parts_give_what_the_whole_gives(method: str, cuts: tuple[int, ...]) -> None:
    """Calibration on several machines must not be another calibration."""
    ends = (0, *cuts, 6)
    parts = [data()[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    merged = singlecard.merge_tables([table_of(part, method=method) for part in parts])
    whole = table_of(data(), method=method)
    for name, scale in whole.tensors.items():
        other = merged.tensors[name]
        assert (other.threshold, other.largest) == (scale.threshold, scale.largest)
        assert other.means == pytest.approx(scale.means, rel=1e-3, abs=1e-5)
        assert other.statistics["histogram"] == scale.statistics["histogram"]  # type: ignore[index]
    assert dataclasses.replace(merged, tensors={}) == dataclasses.replace(whole, tensors={})


def test_files_merge(tmp_path: Any) -> None:
    """Processes hand tables over as files, and a merged one can be merged again."""
    for place in range(3):
        table_of(data()[place * 2 : place * 2 + 2]).save(tmp_path / f"{place}.json")
    first, second, third = (CalibrationTable.load(tmp_path / f"{n}.json") for n in range(3))
    merged = singlecard.merge_tables([singlecard.merge_tables([first, second]), third])
    assert merged.samples == 6
    assert merged.tensors[INPUT].threshold == table_of(data()).tensors[INPUT].threshold


def edited(table: CalibrationTable, threshold: float) -> CalibrationTable:
    tensors = dict(table.tensors)
    tensors[INPUT] = dataclasses.replace(tensors[INPUT], threshold=threshold)
    return dataclasses.replace(table, tensors=tensors)


def test_an_edit_by_hand_stays() -> None:
    """What a person decided must survive the next shard of data."""
    merged = singlecard.merge_tables([edited(table_of(data()[:3]), 0.75), table_of(data()[3:])])
    assert merged.tensors[INPUT].threshold == 0.75
    again = singlecard.merge_tables([merged, table_of(data())])
    assert again.tensors[INPUT].threshold == 0.75


def test_edits_that_differ() -> None:
    """Which of two a person meant, nobody else knows."""
    tables = [edited(table_of(data()[:3]), 0.75), edited(table_of(data()[3:]), 0.5)]
    with pytest.raises(CalibrationError, match=f"edited by hand, for {INPUT}: 0.75, 0.5"):
        singlecard.merge_tables(tables)


def test_what_stays_in_fp32_is_united() -> None:
    """A value that left FP16's range in one shard leaves it in use."""
    first, second = table_of(data()[:3]), table_of(data()[3:])
    merged = singlecard.merge_tables(
        [
            dataclasses.replace(first, keep_fp32=("a:add",), assignment={"0:linear": "int8"}),
            dataclasses.replace(second, keep_fp32=("b:add", "a:add")),
        ]
    )
    assert merged.keep_fp32 == ("a:add", "b:add")
    assert merged.assignment == {"0:linear": "int8"}


def test_a_tensor_that_one_part_saw_as_zeros() -> None:
    """It has no entry in that part's table."""
    first, second = table_of(data()[:3]), table_of(data()[3:])
    fewer = {name: scale for name, scale in first.tensors.items() if name != INPUT}
    merged = singlecard.merge_tables([dataclasses.replace(first, tensors=fewer), second])
    assert merged.tensors[INPUT].threshold == second.tensors[INPUT].threshold


def damaged(table: CalibrationTable) -> CalibrationTable:
    values = json.loads(json.dumps(table.to_dict()))
    histogram = values["tensors"][INPUT]["statistics"]["histogram"]
    histogram["counts"] = histogram["counts"][:-8]
    return CalibrationTable.from_dict(values)


BAD: dict[str, tuple[Callable[[], CalibrationTable], str]] = {
    "another model": (
        lambda: singlecard.calibrate(model(24), data(), smoothing=None),
        r"table 2 is of another model.*another shape",
    ),
    "another method": (lambda: table_of(data(), method="mse"), "methods, min-max and mse"),
    "a divisor": (
        lambda: table_of(data(), smoothing=0.5),
        f"divisor for {INPUT} cannot be merged.*smoothing=None",
    ),
    "no statistics": (
        lambda: table_of(data(), keep_statistics=False),
        f"{INPUT} has none: calibrate each part .*keep_statistics=True",
    ),
    "damaged statistics": (
        lambda: damaged(table_of(data())),
        f"statistics of {INPUT} in a calibration table are damaged",
    ),
    "another assignment": (
        lambda: dataclasses.replace(table_of(data()), assignment={"0:linear": "fp32"}),
        "assign 0:linear to int8 and to fp32",
    ),
    "another graph more": (
        lambda: dataclasses.replace(table_of(data()), graphs=(*table_of(data()).graphs, {"x": {}})),
        "table 2 is of another model than table 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_merged(name: str) -> None:
    """A mix of two models or methods would pass for a table of one."""
    make, said = BAD[name]
    first = dataclasses.replace(table_of(data()), assignment={"0:linear": "int8"})
    with pytest.raises(CalibrationError, match=said):
        singlecard.merge_tables([first, make()])


def test_a_share_that_differs() -> None:
    """Percentiles of another share are another method."""
    tables = [table_of(data(), method="percentile", percentile=share) for share in (99, 99.9)]
    with pytest.raises(CalibrationError, match="percentile 99 and percentile 99.9"):
        singlecard.merge_tables(tables)


@pytest.mark.parametrize("given", [[], ["table.json"]])
def test_what_is_no_table(given: Any) -> None:
    """Paths must be loaded first; nothing at all has no model."""
    with pytest.raises(OptionError, match="takes a list of calibration tables"):
        singlecard.merge_tables(given)


def test_statistics_are_small() -> None:
    """A table that outgrows the model's own files is not checked in beside it."""
    table = table_of(data())
    for scale in table.tensors.values():
        assert len(json.dumps(scale.statistics)) < 8_000
