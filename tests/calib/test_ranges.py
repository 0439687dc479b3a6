"""Overflow in FP16 is found on sample data, and the ops that overflow compute in FP32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard


def relative_l2(model: Any, *args: Any, **options: Any) -> float:
    options = {"precision": "fp16", "strict": True, **options}
    return singlecard.verify(model, args, options=options).relative_l2


class Large(nn.Module):
    """A linear layer whose results are about 1e5, and are divided later."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        with torch.no_grad():
            self.first.weight.mul_(3e5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)) / 1e5)


def test_a_model_that_overflows_is_right_with_its_table() -> None:
    """Without the table the answers are infinite; that is what a range check is for."""
    model, x = Large().eval(), torch.randn(4, 16)
    table = singlecard.calibrate(model, [torch.randn(4, 16), x])
    assert table.keep_fp32 == ("first:linear", "model:relu", "model:div")
    assert not relative_l2(model, x) < 0.1
    assert relative_l2(model, x, calibration=table) < 5e-3
    assert relative_l2(model, x, keep_fp32=("first", "model:relu", "model:div")) < 5e-3


def beyond(function: Callable[..., Any], *args: Any) -> tuple[str, ...]:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(args[0].shape[-1], args[0].shape[-1])

        def forward(self, *given: Any) -> Any:
            return function(self.linear(given[0]), *given[1:])

    return singlecard.calibrate(Whole().eval(), [args, args]).keep_fp32


X = torch.linspace(-2, 2, 24).reshape(3, 8)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y: y * 1e5 * 1e-5, ("model:mul", "model:mul.1")),
        (lambda y: y / 1e6 * 1e6, ("model:div", "model:mul")),
        (lambda y: y * 1e-7 * 1e7, ("model:mul", "model:mul.1")),
        (lambda y: y * 100, ()),
        (lambda y: y.clamp(-1e9, 1e9), ()),
        (lambda y: y * 0.0, ()),
        (lambda y: (y * 1e5).split(4, -1)[1].relu(), None),
    ],
    ids=["result", "number", "too small", "inside", "limits", "zeros", "item"],
)
def test_what_is_beyond(function: Any, expected: tuple[str, ...] | None) -> None:
    """An op too few is an infinity, one too many a slower model."""
    found = beyond(function, X)
    if expected is None:
        assert {"model:mul", "model:relu"} <= set(found)
    else:
        assert found == expected


def test_inputs_that_are_beyond() -> None:
    """What reads such an input must read it in FP32."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x / 3e5)

    model, x = Scaled().eval(), X * 2e5
    table = singlecard.calibrate(model, [x, x])
    assert table.keep_fp32 == ("model:div",)
    assert relative_l2(model, x, calibration=table) < 5e-3


def test_constants_that_are_beyond() -> None:
    """FP16 holds no weight of 1e6: it would be cut to 65504, and the answer be wrong by 15."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.register_buffer("gain", torch.full((8,), 1e6))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear((x * 1e-3) * self.gain * 1e-3)

    model = Scaled().eval()
    table = singlecard.calibrate(model, [X, X])
    assert "model:mul.1" in table.keep_fp32
    assert relative_l2(model, X, calibration=table) < 5e-3


FILLS = [torch.finfo(torch.float32).min, -1e9, -1e30, float("-inf")]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("kind", ["added", "filled", "where", "float mask", "attention"])
def test_masks_are_not_reported(kind: str, fill: float) -> None:
    """Every masked model would lose its fused attention to FP32, for numbers that mean "never"."""
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])

    def attend(y: Tensor, seen: Tensor) -> Tensor:
        blocked = seen[:, None, :] == 0
        scores = y @ y.transpose(1, 2)
        if kind == "attention":
            added = torch.zeros(2, 1, 5).masked_fill(blocked, fill)
            return nn.functional.scaled_dot_product_attention(y, y, y, added)
        if kind == "filled":
            scores = scores.masked_fill(blocked, fill)
        elif kind == "where":
            scores = torch.where(blocked, torch.tensor(fill), scores)
        elif kind == "added":
            scores = scores + torch.zeros(2, 1, 5).masked_fill(blocked, fill)
        else:
            scores = scores + (seen[:, None, :] if fill < -1e38 else (1 - seen[:, None, :]) * fill)
        return torch.softmax(scores, -1) @ y

    x = torch.randn(2, 5, 8)
    given = mask
    if kind == "float mask":
        given = mask.float()
        if fill < -1e38:
            given = torch.zeros(2, 5).masked_fill(mask == 0, fill)
    assert beyond(attend, x, given) == ()


def test_scores_that_overflow_are_reported() -> None:
    """Only what is far below zero is harmless in a softmax: far above it, it is NaN."""
    found = beyond(lambda y: torch.softmax((y * 1e6) + 1, -1), X)
    assert "model:mul" in found and "model:_softmax" in found


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.rms = nn.LayerNorm(512), nn.RMSNorm(512)

    def forward(self, x: Tensor) -> Any:
        return (
            self.layer(x),
            self.rms(x),
            torch.softmax(x * 1e-3, -1),
            x.mean(-1),
            x.square().mean(-1).sqrt(),
            x.std(-1),
            torch.linalg.vector_norm(x, dim=-1) / 512,
        )


def test_sums_accumulate_in_fp32() -> None:
    """Squares of 2000 leave FP16's range, and 512 terms of one size lose their digits in it."""
    torch.manual_seed(0)
    x = (torch.randn(4, 512) * 1000 + 2000).half().float()
    report = singlecard.verify(Norms().eval(), (x,), options={"precision": "fp16"})
    assert report.coverage == 1.0
    for answer, expected in zip(report.outputs, report.expected, strict=True):
        assert float((answer - expected).norm() / expected.norm()) < 5e-3
