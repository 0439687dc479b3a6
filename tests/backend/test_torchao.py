"""Models that torchao, or PyTorch's own older flow, quantized: compiled as they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.report.verify import VerifyReport
from tests.backend.harness import Compiled, equal

quantization = pytest.importorskip("torchao.quantization")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def quantized(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 128))
    model = model.eval().to(dtype)
    quantization.quantize_(model, config)
    return model


def verified(model: nn.Module, x: torch.Tensor, precision: str = "fp16") -> VerifyReport:
    torch._dynamo.reset()
    options = {"precision": precision, "targets": "sm89", "min_block_size": 1}
    report = singlecard.verify(model, (x,), options=options)
    assert report.mismatch is None
    return report


def read_types(report: VerifyReport) -> list[str]:
    """For each product, the types of what it reads."""
    products = [
        kernel
        for plan in report.plans
        for kernel in plan.kernels
        if kernel.kind in ("gemm", "runtime_fusion")
    ]
    return ["+".join(sorted({x.dtype for x in (*k.inputs, *k.constants)})) for k in products]


def int4(**settings: Any) -> Any:
    return quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, **settings)


ROWS = 256 * 256 + 256 * 128


@pytest.mark.parametrize("shape", ((4, 256), (2, 8, 256)))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_int8_weights(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The weights would be read as FP16, twice the bytes, or passed in for each call."""
    model = quantized(quantization.Int8WeightOnlyConfig(), dtype)
    report = verified(model, torch.randn(shape, dtype=dtype))
    assert report.fallback == []
    assert report.relative_l2 < (2e-3 if dtype == torch.float32 else 1.5e-2)
    assert len(read_types(report)) == 2 and all("Int8" in item for item in read_types(report))
    assert report.plans[0].weights_bytes < ROWS + 8192


@pytest.mark.parametrize("group", (32, 64, 128))
def test_int4_weights_in_groups(group: int) -> None:
    """The smallest weights that torchao makes would be four times as large in the engine."""
    model = quantized(int4(granularity=quantization.PerGroup(group)))
    report = verified(model, torch.randn(4, 256))
    assert report.fallback == [] and report.relative_l2 < 2e-3
    assert len(read_types(report)) == 2 and all("Int4" in item for item in read_types(report))
    assert report.plans[0].weights_bytes < ROWS // 2 + 2 * ROWS // group + 8192


def test_int4_weights_by_row() -> None:
    """One scale for a row would make the product read the weight as FP16."""
    model = quantized(int4(granularity=quantization.PerAxis(0)))
    report = verified(model, torch.randn(4, 256))
    assert report.fallback == [] and report.relative_l2 < 2e-3
    assert all("Int4" in item for item in read_types(report))


def test_int4_weights_with_zero_points_are_int8_codes() -> None:
    """Without their zero points, weights would be off by up to half of their range."""
    mapping = quantization.quant_primitives.MappingType.ASYMMETRIC
    model = quantized(int4(granularity=quantization.PerGroup(32), mapping_type=mapping))
    report = verified(model, torch.randn(4, 256))
    assert report.fallback == [] and report.relative_l2 < 2e-3
    assert report.plans[0].weights_bytes < ROWS + 4 * ROWS // 32 + 8192


def test_fp8_weights() -> None:
    """FP8 weights would be refused, or become FP16."""
    report = verified(quantized(quantization.Float8WeightOnlyConfig()), torch.randn(4, 256))
    assert report.fallback == [] and report.relative_l2 < 2e-3
    assert all("FP8" in item for item in read_types(report))


@pytest.mark.parametrize(
    "name", ("Int8DynamicActivationInt8Weight", "Int8DynamicActivationIntxWeight")
)
@pytest.mark.parametrize("precision", ("fp16", "fp32"))
def test_dynamic_activations_stay_in_pytorch(name: str, precision: str) -> None:
    """In FP16, sums of integers would be cut off at 65504 before their scale comes."""
    model = quantized(getattr(quantization, f"{name}Config")())
    x = torch.randn(4, 256)
    x[1] = 0.0  # a padded row: its smallest scale would be zero in FP16
    report = verified(model, x, precision)
    assert report.fallback
    assert any("is part of dynamic quantization" in reason for _, reason in report.fallback)
    assert report.relative_l2 < 2e-2


def test_a_compiled_model_answers_again_and_follows_its_weights() -> None:
    """Weights would be taken for new ones in each call, or a change of theirs not be seen."""
    model, x = quantized(quantization.Int8WeightOnlyConfig()), torch.randn(4, 256)
    compiled = Compiled(model)
    with torch.no_grad():
        equal(compiled(x), model(x))
        equal(compiled(x + 1), model(x + 1))
        model[0].weight.qdata.neg_()
        equal(compiled(x), model(x))
    assert compiled.graphs == 1


def test_quantize_dynamic_says_what_to_use_instead() -> None:
    """Its packed weights cannot be traced: nothing would tell a user why nothing is compiled."""
    float_model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    model = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(float_model), {nn.Linear}, dtype=torch.qint8
    )
    report = verified(model, torch.randn(4, 64))
    ((op, reason),) = set(report.fallback)
    assert op == "graph break"
    assert "quantize_dynamic packed" in reason and "Int8WeightOnlyConfig" in reason
    assert report.max_abs_error == 0


@pytest.mark.parametrize("targets", ("sm86", "portable"))
def test_fp8_weights_are_not_given_to_cards_without_fp8(targets: str) -> None:
    """A portable engine with FP8 builds, and then fails on an older card."""
    torch._dynamo.reset()
    model, options = quantized(quantization.Float8WeightOnlyConfig()), {"precision": "fp16"}
    report = singlecard.verify(
        model, (torch.randn(4, 256),), options={**options, "targets": targets}
    )
    assert any("has fp8 elements: fp8 is not available on" in text for _, text in report.fallback)
    assert report.relative_l2 < 2e-3
