"""precision="auto": within the tolerance, cheaper than FP16, and told."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.errors import FlavourError
from singlecard_calib import search


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 64)
    ).eval()


def data(count: int = 6) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(4, 256, generator=random) for _ in range(count)]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def found() -> Any:
    return singlecard.search_precision(model(), data(), tolerance=0.01, targets="sm89")


def test_answers_are_within_the_tolerance(found: Any) -> None:
    """The tolerance is the promise: on data that was not searched on, it holds about."""
    net = model()
    options = {"precision": "auto", "calibration": found.table, "targets": "sm89"}
    (unseen,) = data(7)[6:]
    report = singlecard.verify(net, (unseen,), options=options)
    assert found.error <= 0.01
    assert report.relative_l2 < 0.013


def test_the_plan_moves_fewer_bytes(found: Any) -> None:
    """An assignment that saves nothing is none: what it saves is the built plan's own count."""
    assert set(found.assignment.values()) - {"fp16"}
    options = {"precision": "auto", "calibration": found.table, "targets": "sm89"}
    report = singlecard.verify(model(), (data()[0],), options=options)
    assert report.plans[0].bytes_moved == found.bytes_moved
    assert found.bytes_moved < 0.75 * found.fp16_bytes


def test_a_wider_tolerance_saves_no_less(found: Any) -> None:
    """Who allows more must not get less."""
    wide = singlecard.search_precision(model(), data(), tolerance=0.2, targets="sm89")
    assert wide.bytes_moved <= found.bytes_moved
    assert "int4-weight" in wide.assignment.values()


def test_prints_what_a_person_decides_by(found: Any) -> None:
    """The table is to be accepted or changed: each op with its errors and its choice."""
    text = str(found)
    for name in ("0:linear", "2:linear", "4:linear"):
        assert name in text
    assert "int8-weight alone" in text and "chosen" in text and "moved of" in text
    assert [count for count, _ in found.cumulative] == sorted(c for c, _ in found.cumulative)


def test_a_person_may_overrule(found: Any) -> None:
    """What is assigned by hand is what is built."""
    table = dataclasses.replace(found.table, assignment={"0:linear": "int4-weight"})
    options = {"precision": "auto", "calibration": table, "targets": "sm89"}
    report = singlecard.verify(model(), (data()[0],), options=options)
    taken = {item.name: item.taken for item in report.placements[0].decisions}
    assert taken == {"0:linear": "int4-weight", "2:linear": "fp16", "4:linear": "fp16"}


def test_a_metric_of_the_users_decides() -> None:
    """Accuracy on a task is not relative L2: the user's own measure is the one that is held."""
    seen = []

    def metric(outputs: torch.Tensor, expected: torch.Tensor) -> float:
        seen.append(1)
        return 1.0 if relative(outputs, expected) > 0 else 0.0  # nothing is good enough

    found = singlecard.search_precision(model(), data(), metric=metric, targets="sm89")
    assert seen and set(found.assignment.values()) == {"fp16"} and found.error == 0.0
    options = {"precision": "auto", "calibration": found.table, "targets": "sm89"}
    assert singlecard.verify(model(), (data()[0],), options=options).coverage == 1.0


def test_rounded_weights_are_written_and_found_again() -> None:
    """GPTQ's choices would be lost if the engine rounded again; the table fits what is saved."""
    net, given = model(), data(16)
    before = copy.deepcopy(net)
    found = singlecard.search_precision(
        net, given, tolerance=0.02, precisions=("int8-weight",), targets="sm89", round_weights=True
    )
    changed = [
        name
        for name, own in net.named_parameters()
        if not torch.equal(own, before.get_parameter(name))
    ]
    assigned = [op for op, kind in sorted(found.assignment.items()) if kind == "int8-weight"]
    assert changed and changed == [f"{op.partition(':')[0]}.weight" for op in assigned]
    options = {"precision": "auto", "calibration": found.table, "targets": "sm89"}
    report = singlecard.verify(net, (given[0],), options=options)
    assert report.relative_l2 < 2e-3  # of FP16 alone: the weights lie on the grid already
    with torch.no_grad():
        assert relative(report.outputs, before(given[0])) < 0.02
    with pytest.raises(singlecard.CalibrationError, match="weights of"):
        singlecard.verify(before, (given[0],), options=options)


def test_bad_arguments_are_errors() -> None:
    """A tolerance of nothing, or a precision that is none, is a mistake to be told of."""
    with pytest.raises(singlecard.OptionError, match="tolerance"):
        singlecard.search_precision(model(), data(), tolerance=0)
    with pytest.raises(singlecard.OptionError, match="fp32"):
        singlecard.search_precision(model(), data(), precisions=("fp32",))
    with pytest.raises(singlecard.CalibrationError):
        singlecard.search_precision(model(), [])
    with pytest.raises(singlecard.OptionError, match="round_weights"):
        singlecard.search_precision(lambda x: x @ x.T, data(), round_weights=True)


def test_a_search_without_a_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would try for minutes, and leave everything in FP16 without a word."""
    monkeypatch.setattr(search, "lists_kernels", lambda: False)
    with pytest.raises(FlavourError, match="install TensorRT for RTX for the search"):
        singlecard.search_precision(nn.Linear(4, 4).eval(), [(torch.ones(1, 4),)])
