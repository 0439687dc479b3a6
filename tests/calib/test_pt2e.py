"""The quantizer for torchao's PT2E flow: what it annotates ends in INT8 arithmetic."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.errors import OptionError

pytest.importorskip("torchao.quantization.pt2e")

from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import (
    convert_pt2e,
    prepare_pt2e,
    prepare_qat_pt2e,
)

from singlecard_calib.pt2e import SinglecardQuantizer


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def quantized(module: nn.Module, x: torch.Tensor, fold: bool = True, **settings: Any) -> Any:
    exported = torch.export.export(module.eval(), (x,)).module()
    prepared = prepare_pt2e(exported, SinglecardQuantizer(**settings))
    for _ in range(3):
        prepared(torch.randn_like(x))
    prepared(x)
    return convert_pt2e(prepared, fold_quantize=fold)


def verified(module: Any, x: torch.Tensor) -> Any:
    torch._dynamo.reset()
    options = {"precision": "fp16", "targets": "sm89", "min_block_size": 1}
    report = singlecard.verify(module, (x,), options=options)
    assert report.fallback == []
    # A value between two codes may fall to either side in FP16: that is one step of INT8.
    assert report.relative_l2 < 2e-2
    return report


def arithmetic(report: Any) -> dict[str, int]:
    (plan,) = report.plans
    return plan.arithmetic_by_type  # type: ignore[no-any-return]


class Vision(nn.Module):
    """Convolutions with batch norm and ReLU, a residual, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16 * 16, 10)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        x = x + torch.relu(self.second(x))
        return self.head(x.flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> Any:
        layers = (self.query, self.key, self.value)
        query, key, value = (f(x).view(2, 16, 4, 16).transpose(1, 2) for f in layers)
        seen = torch.softmax(query @ key.transpose(-1, -2) / 4, -1)
        return self.out((seen @ value).transpose(1, 2).reshape(2, 16, 64))


@pytest.mark.parametrize("observer", ("histogram", "min-max"))
@pytest.mark.parametrize("fold", (True, False))
def test_a_vision_model_computes_in_int8(observer: str, fold: bool) -> None:
    """Somebody who follows torchao's own tutorial would get FP16, or no engine at all."""
    model, x = Vision().eval(), torch.randn(2, 3, 8, 8)
    expected = model(x)
    converted = quantized(model, x, fold, observer=observer)
    assert arithmetic(verified(converted, x)) == {"Int8": 3}
    assert (converted(x) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("dims", (1, 3))
def test_convolutions_of_other_ranks(dims: int) -> None:
    """Speech and video models would stay in FP16."""
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(conv(8, 16, 3), nn.ReLU(), conv(16, 8, 3))
    x = torch.randn(1, 8, *[8] * dims)
    assert arithmetic(verified(quantized(model, x), x)) == {"Int8": 2}


def test_attention_joins_its_projections() -> None:
    """Queries, keys and values would be three products, each with its own rounding."""
    model, x = Attention().eval(), torch.randn(2, 16, 64)
    report = verified(quantized(model, x), x)
    kinds = report.plans[0].kernels_by_kind
    assert kinds["gemm"] == 2  # the three projections, and the one behind attention
    assert set(arithmetic(report)) == {"Int8"}


def test_modules_that_are_excluded_stay_in_floating_point() -> None:
    """The sensitive head of a model could not be kept from INT8."""
    model, x = Vision().eval(), torch.randn(2, 3, 8, 8)
    report = verified(quantized(model, x, exclude_modules=["he*"]), x)
    assert arithmetic(report)["Int8"] == 2
    assert "Half" in arithmetic(report)


def test_products_can_be_left_in_floating_point() -> None:
    """Attention's products are where INT8 hurts first."""
    model, x = Attention().eval(), torch.randn(2, 16, 64)
    converted = quantized(model, x, products=False)
    rounded = [node for node in converted.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert len(rounded) < len(
        [n for n in quantized(model, x).graph.nodes if "quantize_per_tensor" in str(n.target)]
    )


def test_an_unknown_observer_is_told() -> None:
    """A mistyped observer would surface as a KeyError."""
    with pytest.raises(OptionError, match="histogram or min-max"):
        SinglecardQuantizer(observer="entropy")


def test_without_torchao_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package would be named by a module that the user never heard of."""
    monkeypatch.delitem(sys.modules, "singlecard_calib.pt2e")
    monkeypatch.setitem(sys.modules, "torchao.quantization.pt2e", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        __import__("singlecard_calib.pt2e")


def test_a_model_trained_with_simulated_quantization() -> None:
    """Quantization-aware training would end in a model that is not faster."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ).train()
    x = torch.randn(2, 3, 12, 12)
    exported = torch.export.export(model, (x,)).module()
    prepared = prepare_qat_pt2e(exported, SinglecardQuantizer(observer="min-max"))
    for _ in range(3):
        prepared(torch.randn_like(x))
    move_exported_model_to_eval(prepared)
    assert arithmetic(verified(convert_pt2e(prepared), x)) == {"Int8": 2}
