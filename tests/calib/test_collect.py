"""What calibration works out itself must be what the model's own ops compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import singlecard
from singlecard_calib.collect import probabilities


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


Q, K = (2, 4, 5, 8), (2, 4, 7, 8)
BOOLEAN = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
BOOLEAN[..., 0] = True
ADDED = torch.zeros(5, 7).masked_fill(BOOLEAN[0, 0], -3.0)
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": (Q, K, {}),
    "scale": (Q, K, {"scale": 0.3}),
    "boolean mask": (Q, K, {"attn_mask": BOOLEAN}),
    "added mask": (Q, K, {"attn_mask": ADDED}),
    "mask of each head": (Q, K, {"attn_mask": ADDED.expand(2, 4, 5, 7)}),
    "mask of keys": (Q, K, {"attn_mask": BOOLEAN[:, :, :1]}),
    "causal": (Q, Q, {"is_causal": True}),
    "causal, more keys": (Q, K, {"is_causal": True}),
    "grouped heads": (Q, (2, 2, 7, 8), {"enable_gqa": True}),
    "grouped heads, mask": (Q, (2, 2, 7, 8), {"enable_gqa": True, "attn_mask": BOOLEAN}),
    "3-D": (Q[1:], K[1:], {}),
    "3-D, mask": (Q[1:], K[1:], {"attn_mask": ADDED}),
    "2-D": (Q[2:], K[2:], {"attn_mask": ADDED}),
    "5-D": ((3, *Q), (3, *K), {"attn_mask": BOOLEAN}),
    "one key for all items": (Q, (1, 4, 7, 8), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_probabilities_are_those_of_pytorch(name: str) -> None:
    """Attention hides its probabilities: their scale would be that of another attention."""
    first, second, given = CASES[name]
    query, key = tensors(first, second)
    # With the unit matrix for values, attention returns its probabilities.
    value = torch.eye(second[-2]).expand(*second[:-1], second[-2])
    expected = F.scaled_dot_product_attention(query, key, value, **given)
    mask, causal = given.get("attn_mask"), given.get("is_causal", False)
    parts = list(probabilities(query, key, mask, causal, given.get("scale")))
    assert len(parts) == math.prod(first[:-3])
    torch.testing.assert_close(torch.stack(parts).reshape(expected.shape), expected)


def test_rows_that_see_nothing_are_zero() -> None:
    """Padding rows would be NaN, and calibration refuse a model that works."""
    query, key = tensors((1, 1, 2, 4), (1, 1, 3, 4))
    mask = torch.tensor([[True, True, False], [False] * 3])
    (found,) = probabilities(query, key, mask, False, None)
    assert found[0, 1].tolist() == [0, 0, 0] and math.isclose(
        float(found[0, 0].sum()), 1, abs_tol=1e-6
    )


class Attending(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_every_operand_of_attention_is_seen() -> None:
    """One operand without a scale leaves attention in FP16."""
    q, k, v = tensors((2, 2, 4, 8), (2, 2, 4, 8), (2, 2, 4, 8))
    table = singlecard.calibrate(Attending().eval(), [(q, k * 2, v * 3)] * 2, smoothing=None)
    found = {name.rpartition("/")[2]: scale.largest for name, scale in table.tensors.items()}
    assert found == {
        "query": float(q.abs().max()),
        "key": float((k * 2).abs().max()),
        "value": float((v * 3).abs().max()),
        "probabilities": 1.0,
    }


class Mixed(nn.Module):
    """A product reads a tensor first, a linear layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, x.transpose(1, 2)) @ self.linear(x)


def test_channels_are_those_of_the_linear_layer() -> None:
    """Bias correction needs means by channel, whichever op comes first; smoothing must not be."""
    (x,) = tensors((2, 6, 6))
    table = singlecard.calibrate(Mixed().eval(), [x, x + 1])
    scale = table.tensors["model:product/first"]
    expected = torch.cat([x, x + 1]).reshape(-1, 6).mean(0)
    torch.testing.assert_close(torch.tensor(scale.means), expected, rtol=1e-4, atol=1e-5)
    assert scale.divisor == ()


def test_the_model_answers_as_before() -> None:
    """Calibration in an evaluation loop must not change the metric that the loop computes."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).eval()
    (x,) = tensors((2, 3, 8, 8))
    with singlecard.calibrating(model), torch.no_grad():
        answer = model(x)
    torch.testing.assert_close(answer, model(x).detach())


def test_a_model_in_half_precision() -> None:
    """Models come in the type they were trained in."""
    model = nn.Linear(8, 4).to(torch.bfloat16).eval()
    (x,) = tensors((2, 8))
    table = singlecard.calibrate(model, [x.bfloat16()] * 2)
    assert table.tensors["model:linear/input"].largest == float(x.bfloat16().abs().max())
