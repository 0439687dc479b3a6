"""Where quantization is put into a Program, and that it says the same before rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.capture.quantized import dequantize, fake_quantize, quantized_attention
from singlecard.partition import divide
from singlecard.passes import simplify
from singlecard.precision.points import points_of
from singlecard.precision.quantize import quantize, refusal
from singlecard.precision.table import CalibrationTable, TensorScale
from singlecard.runtime.runners import eager_runner
from tests.graphs import program_of

ADD = torch.ops.aten.add.Tensor


class Block(nn.Module):
    """Projections that share an input, attention, a residual, a feed-forward part."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = (part(x) for part in (self.query, self.key, self.value))
        q, k, v = (part.view(batch, length, 4, -1).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(x)))


@pytest.fixture(scope="module")
def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def table(block: Block, example: torch.Tensor) -> CalibrationTable:
    return singlecard.calibrate(block, [example, -example, example.flip(1)])


def quantized(
    module: Callable[..., Any], x: torch.Tensor, table: Any, kinds: Mapping[str, str]
) -> Any:
    """Return the Program of a module with every point of the named ops quantized."""
    program = simplify(program_of(module, x))
    points = points_of(program)
    chosen = {p.name: kinds[p.op] for p in points if p.op in kinds}
    assert all(refusal(p, chosen[p.name], table) is None for p in points if p.name in chosen)
    quantize(program, points, chosen, table)
    program.check()
    return program


def answer(program: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a Program of one input and one result in PyTorch, in its own precision."""
    partition = divide(program, lambda node: "it is tested", None)
    (segment,) = partition.segments
    with torch.no_grad():
        (result,) = eager_runner(program, segment)([x])
    return result


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_answers_are_those_of_rounded_operands(
    block: Block, example: torch.Tensor, table: CalibrationTable, kind: str
) -> None:
    """A scale, a divisor, a gain or a bias in the wrong place is an error far above rounding."""
    ops = {"linear": kind, "attention": kind}
    program = quantized(block, example, table, ops)
    got = answer(program, example)
    with torch.no_grad():
        error = relative(got, block(example))
    assert 1e-4 < error < (0.03 if kind == "int8" else 0.08)


@pytest.mark.parametrize(("kind", "most"), [("int8-weight", 0.01), ("int4-weight", 0.15)])
def test_weights_alone_need_no_table(
    block: Block, example: torch.Tensor, kind: str, most: float
) -> None:
    """Weight-only quantization is one option, without data."""
    program = quantized(block, example, None, {"linear": kind})
    got = answer(program, example)
    with torch.no_grad():
        assert 1e-4 < relative(got, block(example)) < most


def test_what_reads_one_tensor_shares_its_rounding(
    block: Block, example: torch.Tensor, table: CalibrationTable
) -> None:
    """Query, key and value read one rounded tensor and one scale, or the builder splits them."""
    program = quantized(block, example, table, {"linear": "int8"})
    rounded = [node for node in program.calls() if node.target is fake_quantize]
    assert len(rounded) == 4  # for q, k, v; for out; for up; for down
    scales = [
        float(program.constant(node.args[1]))
        for node in program.calls()
        if node.target is dequantize
    ]
    assert len(scales) == 6 and len(set(scales)) == 4


def test_attention_is_rounded_as_one(
    block: Block, example: torch.Tensor, table: CalibrationTable
) -> None:
    """Its scale, its softmax and its masks stay with it."""
    program = quantized(block, example, table, {"attention": "int8"})
    (node,) = [node for node in program.calls() if node.target is quantized_attention]
    assert len(node.args[8]) == 4 and all(step > 0 for step in node.args[8])


@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_a_residual_adds_what_the_products_read(
    block: Block, example: torch.Tensor, smoothing: float | None
) -> None:
    """Otherwise a plan writes the value twice, in FP16 and in INT8, and reads both."""
    table = singlecard.calibrate(block, [example], smoothing=smoothing)
    kinds = {"linear": "int8", "residual": "int8"}
    with_residuals = quantized(block, example, table, kinds)
    without = quantized(block, example, table, {"linear": "int8"})
    sources = [
        [node.args[0] for node in program.calls() if node.target == fake_quantize]
        for program in (with_residuals, without)
    ]
    read = [
        {reader for source in found for reader in source.users if reader.target == ADD}
        for found in sources
    ]
    assert (len(sources[0]), len(read[0])) == (len(sources[1]), 0)
    assert smoothing is not None or len(read[1]) == 2
    expected = block(example)
    error = relative(answer(with_residuals, example), expected)
    assert relative(answer(without, example), expected) < error < 0.02


def test_a_residual_that_no_product_rounds_stays(
    block: Block, example: torch.Tensor, table: CalibrationTable
) -> None:
    """A kernel would round a value, and save nothing."""
    program = quantized(block, example, table, {"residual": "int8"})
    assert not [node for node in program.calls() if node.target == fake_quantize]
    assert not [line for line in program.trace if "residual" in line]


def test_convolutions_and_grouped_ones() -> None:
    """A gain on the wrong axis, or a mean on the wrong group, moves channels against each other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Flatten(1)
    ).eval()
    with torch.no_grad():
        model[0].weight[3] *= 30
    x = torch.rand(4, 8, 10, 10)
    program = quantized(
        model, x, singlecard.calibrate(model, [x, 0.5 * x]), {"convolution": "int8"}
    )
    got = answer(program, x)
    with torch.no_grad():
        assert relative(got, model(x)) < 0.05


def test_a_table_without_an_entry_refuses(
    block: Block, example: torch.Tensor, table: CalibrationTable
) -> None:
    """An op whose entry a person deleted stays in FP16; it gets no made-up scale."""
    program = simplify(program_of(block, example))
    for point in points_of(program):
        if point.op == "linear":
            name = point.operands[0][0]
            left = {key: value for key, value in table.tensors.items() if key != name}
            cut = CalibrationTable(table.method, table.samples, table.graphs, left)
            assert name in str(refusal(point, "int8", cut))


def test_a_divisor_of_another_length_is_an_error(block: Block, example: torch.Tensor) -> None:
    """A table that was edited by hand must not be used half."""
    table = singlecard.calibrate(block, [example, -example], smoothing=None)
    name = "up:linear/input"
    scale = table.tensors[name]
    wrong = dict(table.tensors)
    wrong[name] = TensorScale(scale.threshold, scale.largest, (1.0, 2.0))
    cut = CalibrationTable(table.method, table.samples, table.graphs, wrong)
    with pytest.raises(singlecard.CalibrationError, match="up:linear/input"):
        quantized(block, example, cut, {"linear": "int8"})


class Attending(nn.Module):
    """Attention with a mask, heads shared or causal order."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = given

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, **self.given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.arange(16) < torch.arange(1, 17)[:, None]},
        {"attn_mask": torch.linspace(-2, 0, 16).expand(16, 16)},
    ],
    ids=["plain", "causal", "scaled", "boolean", "additive"],
)
def test_the_network_rounds_as_pytorch_does(given: dict[str, Any]) -> None:
    """The engine and the fallback of quantized attention must be one function."""
    torch.manual_seed(0)
    args = tuple(torch.randn(2, 4, 16, 32) for _ in range(3))
    model = Attending(**given).eval()
    table = singlecard.calibrate(model, [args, args])
    ops = {name: "int8" for graph in table.graphs for name in graph}
    chosen = dataclasses.replace(table, assignment=ops)
    options = {"precision": "auto", "calibration": chosen, "targets": "sm89"}
    report = singlecard.verify(model, args, options=options)
    assert report.coverage == 1.0 and report.plans[0].arithmetic_by_type.get("Int8")
    assert 1e-4 < report.relative_l2 < 0.03
