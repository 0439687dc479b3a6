"""`singlecard.explain`: the cost of a model on a card, known before there is one."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import singlecard.report.explain
from singlecard import OptionError, TargetError, explain
from singlecard.report.explain import Explanation


class Model(nn.Module):
    """Two engines with an op between them that TensorRT lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.special.bessel_j0(self.first(x))
        return self.second(torch.special.bessel_j0(x).relu())


def explain_model(tmp_path: Path, **options: object) -> Explanation:
    torch.manual_seed(0)
    kept = {"cache_dir": tmp_path, "min_block_size": 1}  # small engines stand for large ones
    return explain(Model().eval(), (torch.ones(4, 64),), options={**kept, **options})


def test_it_tells_what_stays_and_where_it_stands(tmp_path: Path) -> None:
    """The first question is why there is more than one engine."""
    found = explain_model(tmp_path)
    assert sum(row.times for row in found.fallback) == 2
    assert all("bessel_j0" in row.op and row.op in row.reason for row in found.fallback)
    assert all("test_explain.py" in row.line for row in found.fallback)
    assert len(found.engines) == 2 and 0 < found.coverage < 1


def test_each_engine_has_its_plan_and_numbers(tmp_path: Path) -> None:
    """The plan file is what one takes to the card."""
    found = explain_model(tmp_path, targets=("sm89",), precision="fp16")
    for engine in found.engines:
        report = engine.report
        assert engine.plan.stat().st_size == report.engine_bytes
        assert report.bytes_moved and report.floor_bytes
        assert report.bytes_moved >= report.floor_bytes
    weights = 2 * 64 * 64
    assert found.engines[0].report.weights_bytes >= weights


def test_cards_are_those_of_the_targets(tmp_path: Path) -> None:
    """A time on a card that the engine does not run on would mislead."""
    found = explain_model(tmp_path, targets="sm80,sm120")
    assert {card.target for card in found.cards} == {"sm80", "sm120"}
    (bounds, _) = [engine["roofline"] for engine in found.to_dict()["engines"]]
    assert {bound["target"] for bound in bounds} == {"sm80", "sm120"}
    assert all(bound["at_least_seconds"] > 0 and bound["fits"] for bound in bounds)


def test_the_table_holds_all_of_it(tmp_path: Path) -> None:
    """It is what ``print`` shows in a notebook on a server."""
    text = str(explain_model(tmp_path, targets="sm86"))
    for words in ("Model", "fp32", "sm86", "bessel_j0", "Engine 2 of 2", "floor", "RTX 3090"):
        assert words in text
    assert "first" in text and "second" in text


def test_the_page_holds_all_of_it(tmp_path: Path) -> None:
    """It is sent to those who run no Python."""
    page = explain_model(tmp_path, targets="sm86").html()
    for words in ("<!doctype html>", "Model: fp32, sm86", "bessel_j0", "Engine 1 of 2", "RTX 3090"):
        assert words in page


def test_a_model_without_engines_is_explained_too(tmp_path: Path) -> None:
    """Just then the reasons are all that helps."""
    found = explain(torch.special.bessel_j0, (torch.ones(3),), options={"cache_dir": tmp_path})
    assert found.engines == () and found.coverage == 0.0
    assert "bessel_j0" in str(found) and "bessel_j0" in found.html()


def test_a_model_with_nothing_to_compute_is_covered(tmp_path: Path) -> None:
    """A share of 0 % would send somebody looking for an op that PyTorch runs; there is none."""
    found = explain(lambda x: x[:0] * 2, (torch.ones(3),), options={"cache_dir": tmp_path})
    assert not found.fallback and not found.engines and found.coverage == 1.0


def test_the_dictionary_is_json(tmp_path: Path) -> None:
    """Programs keep it beside the engine."""
    found = explain_model(tmp_path)
    again = json.loads(json.dumps(found.to_dict()))
    assert again["engines"][0]["digest"] == found.engines[0].digest
    assert again["fallback"][0]["op"] == found.fallback[0].op


def test_tf32_is_bounded_by_tf32(tmp_path: Path) -> None:
    """On an A10 the rate is twice that of FP32, and so is what the card may reach."""

    def seconds(precision: str) -> float:
        torch.manual_seed(0)
        options = {"cache_dir": tmp_path, "precision": precision, "targets": "sm86"}
        model = nn.Linear(1024, 1024).eval()
        found = explain(model, (torch.ones(4096, 1024),), options=options)
        (card,) = [
            bound
            for bound in found.to_dict()["engines"][0]["roofline"]
            if bound["card"] == "A10"
        ]  # fmt: skip
        return float(card["at_least_seconds"])

    assert seconds("tf32") < 0.6 * seconds("fp32")


def test_bad_options_are_refused() -> None:
    """Before anything is captured or built."""
    model, args = nn.Linear(2, 2), (torch.ones(1, 2),)
    with pytest.raises(OptionError, match="did you mean 'precision'"):
        explain(model, args, options={"precison": "fp16"})
    with pytest.raises(TargetError, match="sm75"):
        explain(model, args, options={"precision": "bf16", "targets": "sm75"})


def test_progress_is_told(tmp_path: Path) -> None:
    """Minutes of silence look like a hang."""
    told: list[tuple[str, int, int]] = []
    options = {"cache_dir": tmp_path}
    explain(
        nn.Linear(2, 2), (torch.ones(1, 2),), options=options, progress=lambda *at: told.append(at)
    )
    assert told and all(0 <= done <= steps for _, done, steps in told)


def test_the_docstrings_example_runs() -> None:
    """It is what users copy first."""
    result = doctest.testmod(singlecard.report.explain)
    assert result.attempted and not result.failed
