"""Whole models: every architecture of the list, checked; and the results page, checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

import singlecard
from tests.models.architectures import ARCHITECTURES, FAMILIES, Architecture

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "architectures.json"
SIZES = RESULTS.with_name("architecture_sizes.json")
#: Pads by amounts that a tensor holds: PyTorch cannot trace that for any backend.
WITHOUT_ENGINES = {"encodec_decoder"}


@pytest.fixture(autouse=True)
def no_memory_of_other_models() -> None:
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("one", ARCHITECTURES.values(), ids=lambda one: one.name)
def test_answers_are_right(one: Architecture) -> None:
    """A user's model is one of these, or made of their parts."""
    with one.settings():
        # Sizes are small: every engine stands for one that is worth its call.
        report = singlecard.verify(*one.make(), options={"min_block_size": 1})
    for answer in pytree.tree_leaves(report.expected):
        if isinstance(answer, torch.Tensor) and answer.is_floating_point():
            assert bool(torch.isfinite(answer).all())
            assert answer.numel() == 1 or float(answer.std()) > 1e-4, "says nothing of the model"
    assert report.mismatch is None
    assert report.relative_l2 <= one.limit
    assert len(report.fallback) <= one.left_out, report.fallback
    assert report.engines <= one.engines


def test_list_is_as_wide_as_promised() -> None:
    """Forty architectures, of each kind that people run."""
    assert {one.family for one in ARCHITECTURES.values()} == set(FAMILIES)
    assert len({one.model for one in ARCHITECTURES.values()}) >= 40


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RESULTS.read_text())["rows"]
    return found


def test_results_are_of_this_list(rows: list[dict[str, Any]]) -> None:
    """A page that leaves a model out hides what went wrong with it."""
    assert {row["name"] for row in rows} == set(ARCHITECTURES)


def test_results_hold_what_is_promised(rows: list[dict[str, Any]]) -> None:
    """Forty architectures with right answers, thirty-six of them whole on the card."""
    wrong = [
        row["name"]
        for row in rows
        if row["mismatch"] or row["relative_l2"] > ARCHITECTURES[row["name"]].limit
    ]
    assert wrong == []
    kinds = {row["model_type"] for row in rows}
    incomplete = {row["model_type"] for row in rows if row["fallback"]}
    assert len(kinds) >= 40
    assert len(kinds - incomplete) >= 36


def test_results_stay_under_the_time_of_the_onnx_route(rows: list[dict[str, Any]]) -> None:
    """Whoever waits longer than with the export they know goes back to it."""
    slower = {
        row["name"]: row["cpu_ratio"]
        for row in rows
        if row["cpu_ratio"] is not None and row["cpu_ratio"] >= 1
    }
    assert slower == {}


def test_results_at_further_sizes_hold_what_is_promised() -> None:
    """A second batch, length or resolution: right, from an engine made for sizes that vary."""
    rows = [row for row in json.loads(SIZES.read_text())["rows"] if "relative_l2" in row]
    assert {row["name"] for row in rows} <= set(ARCHITECTURES)
    assert [row["name"] for row in rows if row["mismatch"] or row["relative_l2"] > 1e-4] == []
    assert [row["name"] for row in rows if row["evaluations"] < 2 or row["fallback_calls"]] == []
    unserved = {row["name"] for row in rows if row["served_graphs"] < row["symbolic_graphs"]}
    assert unserved <= WITHOUT_ENGINES
