"""Engines of full TensorRT, whose kernels are not known: every page says so, and shows the rest.

They are built here with TensorRT for RTX, and their logs read as full TensorRT's are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.engine import build, plan_report
from singlecard.placement import NOT_COMPARED
from singlecard.report.plan_rows import overview_grid
from singlecard.report.tables import engines_table, text_of

X = torch.ones(4, 64)


@pytest.fixture(params=["totals", "nothing"])
def told(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the builder tells scratch and weights."""
    torch._dynamo.reset()
    monkeypatch.setattr(build, "lists_kernels", lambda: False)
    if request.param == "nothing":
        monkeypatch.setattr(plan_report, "read_totals", lambda messages: (None, None))
    return bool(request.param == "totals")


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"cache_dir": tmp_path, "targets": "sm89", "min_block_size": 1}


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def words_after(text: str, name: str) -> list[str]:
    """Return the words of the first line that begins with a name, behind it."""
    line = next(line for line in text.splitlines() if line.strip().startswith(name))
    return line.split()[len(name.split()) :]


def test_explain(told: bool, options: dict[str, Any]) -> None:
    """A wrong number of kernels, or a model that "fits", would be believed."""
    found = singlecard.explain(model(), (X,), options=options)
    text = str(found)
    for name in ("kernels", "moves", "floor", "multiplies"):
        assert words_after(text, name)[0] == "unknown", name
    assert "the list of full TensorRT is not read" in text
    assert (words_after(text, "scratch")[0] == "unknown") is not told
    assert words_after(text, "RTX 4090")[1:3] == ["yes" if told else "unknown", "unknown"]
    page = found.html()
    assert "unknown" in page and "Kernels by kind" not in page
    (engine,) = json.loads(json.dumps(found.to_dict()))["engines"]
    assert engine["kernels"] is engine["kernels_by_kind"] is engine["bytes_moved"] is None
    assert {item["fits"] for item in engine["roofline"]} == {True if told else None}
    assert {item["at_least_seconds"] for item in engine["roofline"]} == {None}
    rows = overview_grid([("engine 0", found.engines[0].report)]).rows
    assert rows[0][1] == "unknown"
    assert "unknown" in text_of(engines_table(found.engines, "sm89"))


def test_verify(told: bool, options: dict[str, Any]) -> None:
    """The answers are what counts there: they are compared all the same."""
    found = singlecard.verify(model(), (X,), options=options)
    assert found.coverage == 1 and found.mismatch is None
    assert words_after(str(found), "kernels") == ["unknown"]
    assert json.loads(json.dumps(found.to_dict()))["kernels"] == [None]
    assert (found.plans[0].scratch_bytes is None) is not told


def test_placement(told: bool, options: dict[str, Any]) -> None:
    """INT8 that was asked for is taken, and the table says that nobody compared."""
    batches = [torch.randn(4, 64, generator=torch.Generator().manual_seed(at)) for at in range(8)]
    table = singlecard.calibrate(model(), batches)
    given = {**options, "precision": "int8", "calibration": table}
    found = singlecard.verify(model(), (X,), options=given)
    (placement,) = found.placements
    assert set(placement.assignment.values()) == {"int8"}
    assert {item.reason for item in placement.decisions} == {NOT_COMPARED}
    assert "comparison" in str(found)
    (shown,) = json.loads(json.dumps(found.to_dict()))["quantization"]
    assert {item["reason"] for item in shown["decisions"]} == {NOT_COMPARED}
    assert shown["fp16"] is None and shown["quantized"] is None


def test_plan_memory(told: bool, options: dict[str, Any]) -> None:
    """Someone buys a card by this table: what is not known must not look like a fit."""
    for card, fits in (("RTX 4070", True), ("9MB", False)):
        plan = singlecard.plan_memory(
            model(), (X,), card=card, batches=[4], precisions=["fp16"], options=options
        )
        text, row = str(plan), json.loads(json.dumps(plan.to_dict()))["rows"][0]
        assert row["fits"] is (fits if told else None)
        assert plan.fits is (fits and told) and bool(plan.recommended) is (fits and told)
        assert (row["needs_bytes"] is None) is not told
        assert ("whether those fit is unknown" in text) is not told
        assert ("Nothing fits" in text) is (told and not fits)
        assert words_after(text, "fp16")[1] == "unknown" or told


def test_plan_memory_with_one_size(
    told: bool, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights without scratch are no answer to whether it fits, and still worth to be shown."""
    monkeypatch.setattr(plan_report, "read_totals", lambda messages: (None, 9_500))
    plan = singlecard.plan_memory(
        model(), (X,), card="1GB", reserve=0, batches=[4], precisions=["fp16"], options=options
    )
    (row,) = plan.rows
    assert (row.weights_bytes, row.scratch_bytes, row.fits) == (9_500, None, None)
    assert words_after(str(plan), "fp16")[1:4] == ["9.5", "kB", "unknown"]


def test_export_and_load(told: bool, options: dict[str, Any], tmp_path: Path) -> None:
    """An artifact that cannot be opened for want of a number is a lost delivery."""
    path = tmp_path / "model.singlecard"
    report = singlecard.export(model(), (X,), path=path, options=options)
    assert words_after(str(report), "kernels") == ["unknown"]
    json.dumps(report.to_dict())
    loaded = singlecard.load(path)
    (engine,) = loaded.engines
    assert engine.kernels is None and (engine.scratch_bytes is None) is not told
    assert "unknown kernels" in str(loaded)
