"""Quantized constants and values in real plans: their kinds, scales, and what the kernels read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import singlecard
from singlecard.capture.quantized import KINDS, codes_of, dequantize, fake_quantize
from singlecard.network.net import Net
from singlecard.report.verify import VerifyReport
from tests.lowering.check import refuse


class Layer(nn.Module):
    """A product, or a convolution, with a quantized weight, and perhaps a rounded input."""

    def __init__(
        self, kind: str, scales: str | int, rounded: str = "", shape: tuple[int, ...] = (64, 256)
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(shape) / 16
        largest = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (len(shape) - 1))
        if scales == "tensor":
            largest = weight.abs().max()
        elif isinstance(scales, int):
            largest = weight.abs().reshape(shape[0], -1, scales).amax(2)
        scale = largest / KINDS[kind].largest
        self.register_buffer("scale", scale)
        self.register_buffer("codes", codes_of(weight, scale, kind))
        self.register_buffer("step", torch.tensor(4 / KINDS[rounded or "int8"].largest))
        self.bias = nn.Parameter(torch.randn(shape[0]))
        self.kind, self.rounded = kind, rounded
        self.op: Any = (None, None, F.linear, F.conv1d, F.conv2d, F.conv3d)[len(shape)]

    def forward(self, x: torch.Tensor) -> Any:
        if self.rounded:
            x = fake_quantize(x, self.step, self.rounded)
        weight = dequantize(self.codes, self.scale, self.kind, torch.float32)
        return self.op(x, weight, self.bias)


class Table(Layer):
    """An embedding with a quantized weight."""

    def forward(self, ids: torch.Tensor) -> Any:
        return F.embedding(ids, dequantize(self.codes, self.scale, self.kind, torch.float32))


def verified(module: nn.Module, x: torch.Tensor, precision: str = "fp16") -> VerifyReport:
    torch._dynamo.reset()
    options = {"precision": precision, "targets": "sm89", "min_block_size": 1}
    report = singlecard.verify(module.eval(), (x,), options=options)
    assert report.coverage == 1.0, report.fallback
    assert report.mismatch is None
    return report


def read_types(report: VerifyReport) -> set[str]:
    """Types of what the kernels read."""
    kernels = [kernel for plan in report.plans for kernel in plan.kernels]
    return {item.dtype for kernel in kernels for item in (*kernel.inputs, *kernel.constants)}


NAMES = {"int8": "Int8", "int4": "Int4", "fp8": "FP8"}


@pytest.mark.parametrize("precision", ("fp16", "bf16", "fp32"))
@pytest.mark.parametrize(
    ("kind", "scales"),
    (
        ("int8", "tensor"),
        ("int8", "row"),
        ("int8", 32),
        ("int4", "row"),
        ("int4", 32),
        ("int4", 64),
        ("int4", 128),
        ("fp8", "tensor"),
        ("fp8", "row"),
    ),
)
def test_weights_stay_codes(kind: str, scales: str | int, precision: str) -> None:
    """A quantized weight would be as large in the engine as it was before."""
    report = verified(Layer(kind, scales), torch.randn(2, 8, 256), precision)
    assert report.relative_l2 < {"fp16": 2e-3, "bf16": 1.5e-2, "fp32": 2e-6}[precision]
    assert NAMES[kind] in read_types(report)
    codes = 64 * 256 * KINDS[kind].bits // 8
    assert codes <= report.plans[0].weights_bytes < codes + 64 * 8 * 4 + 4096


@pytest.mark.parametrize("scales", ("tensor", "row", 32))
def test_int4_products_read_the_codes_themselves(scales: str | int) -> None:
    """The weight would be written to memory as FP16 first, and read again: nine times the bytes."""
    (plan,) = verified(Layer("int4", scales), torch.randn(16, 256)).plans
    (product,) = [item for item in plan.kernels if item.kind in ("gemm", "runtime_fusion")]
    assert "Int4" in {item.dtype for item in (*product.inputs, *product.constants)}


@pytest.mark.parametrize("kind", ("int8", "fp8"))
def test_rounded_operands_are_multiplied_as_they_are(kind: str) -> None:
    """Nothing would be faster: the product would read FP16."""
    report = verified(Layer(kind, "row", kind), torch.randn(16, 256))
    assert report.plans[0].arithmetic_by_type == {NAMES[kind]: 1}
    assert report.relative_l2 < 2e-2


@pytest.mark.parametrize("dims", (1, 2, 3))
def test_int8_convolutions(dims: int) -> None:
    """Vision and speech models would be quantized without being faster."""
    module = Layer("int8", "row", "int8", (16, 8, *[3] * dims))
    report = verified(module, torch.randn(1, 8, *[10] * dims))
    assert report.plans[0].arithmetic_by_type == {"Int8": 1}
    assert report.relative_l2 < 1e-2
    (convolution,) = [item for item in report.plans[0].kernels if item.kind == "correlation"]
    assert {item.dtype for item in convolution.outputs} == {"Half"}  # with scales by channel: Float


def test_a_table_is_looked_up_by_rows() -> None:
    """A quantized embedding would be dequantized as a whole for each call."""
    report = verified(Table("int8", "row"), torch.tensor([[3, 1], [0, 63]]))
    assert report.relative_l2 < 1e-3
    moved = report.plans[0].bytes_moved
    assert moved is not None and moved < 64 * 256


def test_scales_too_small_for_fp16_stay_in_fp32() -> None:
    """Rows of small numbers would be multiplied by scales of few digits."""
    module = Table("int8", "row")
    module.scale.mul_(torch.logspace(0, -9, 64, 2.0)[:, None])  # down to 2**-19
    report = verified(module, torch.arange(64))
    got, want = report.outputs, report.expected
    errors = (got - want).norm(dim=1) / want.norm(dim=1)
    assert errors.max() < 1e-3


def test_codes_of_another_type_are_refused() -> None:
    """FP8 codes that are called INT8 would be read as other numbers."""
    codes = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    scale = nn.Parameter(torch.tensor(0.5))
    reason = refuse(
        lambda x, q, s: x + dequantize(q, s, "fp8", torch.float32), torch.randn(4, 4), codes, scale
    )
    assert "codes have the type of their kind, got int8" in reason


def test_a_scale_for_each_channel_of_a_value_is_refused() -> None:
    """TensorRT takes such scales for constants alone: the whole engine would fail to build."""
    scale = nn.Parameter(torch.rand(1, 4) + 0.1)
    reason = refuse(lambda x, s: fake_quantize(x, s, "int8"), torch.randn(3, 4), scale)
    assert "takes 0 dimensions, scale has 2" in reason


def test_the_facade_shares_int4_constants() -> None:
    """A weight that is used twice would be stored twice."""
    net, codes = Net(), torch.zeros(4, 64, dtype=torch.int8)
    assert net.constant_int4(codes) is net.constant_int4(codes)
    assert net.constant_int4(codes).dtype == torch.int4
