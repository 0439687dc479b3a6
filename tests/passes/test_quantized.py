"""Quantization as other libraries write it becomes our two ops, or says why it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from singlecard.capture.program import Program
from singlecard.capture.quantized import dequantize, fake_quantize
from singlecard.lowering.table import refusal
from singlecard.passes import simplify
from tests.graphs import answers, program_of, targets

pytest.importorskip("torchao.quantization.pt2e")  # defines quantized_decomposed's ops

ops = torch.ops.quantized_decomposed
INT8 = (-128, 127, torch.int8)


def rewritten(module: Any, x: torch.Tensor, tolerance: float = 1e-6) -> Program:
    """Simplify a Program, and prove that its answers are the same but for rounding."""
    program = program_of(module, x)
    before = answers(program, x, double=False)
    simplify(program)
    program.check()
    for got, want in zip(answers(program, x, double=False), before, strict=True):
        assert (got - want).norm() <= tolerance * want.norm()
    return program


def reasons(program: Program) -> set[str]:
    return {reason for node in program.calls() if (reason := refusal(node))}


def round_trip(x: torch.Tensor, *given: Any) -> torch.Tensor:
    codes = ops.quantize_per_tensor(x, *given)
    return ops.dequantize_per_tensor(codes, *given)  # type: ignore[no-any-return]


def test_quantize_and_dequantize_are_one_rounding() -> None:
    """A model from the PT2E flow would run in eager PyTorch, op by op."""
    program = rewritten(lambda x: round_trip(x, 0.02, 0, *INT8).relu(), torch.randn(3, 4))
    assert targets(program) == [str(fake_quantize), "aten.relu.default"]
    assert not reasons(program)


def test_scales_that_are_tensors() -> None:
    """Some flows keep the scale in a buffer instead of the graph."""

    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(0.02))
            self.register_buffer("zero", torch.tensor(0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return round_trip(x, self.scale, self.zero, *INT8)

    assert targets(rewritten(Buffered(), torch.randn(3, 4))) == [str(fake_quantize)]


def test_one_quantize_with_several_dequantizes_is_rounded_once() -> None:
    """Queries, keys and values would each read an input of their own, and not be one product."""

    def shared(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = ops.quantize_per_tensor(x, 0.02, 0, *INT8)
        first, second = (ops.dequantize_per_tensor(codes, 0.02, 0, *INT8) for _ in range(2))
        return first.exp(), second.sin()

    names = targets(rewritten(shared, torch.randn(3, 4)))
    assert names.count(str(fake_quantize)) == 1


def test_codes_that_are_viewed_and_transposed() -> None:
    """Codes have no type in an engine: a view of them would leave all behind it in PyTorch."""

    def viewed(x: torch.Tensor) -> torch.Tensor:
        codes = ops.quantize_per_tensor(x, 0.02, 0, *INT8).view(2, 6).t()
        return ops.dequantize_per_tensor(codes, 0.02, 0, *INT8)  # type: ignore[no-any-return]

    program = rewritten(viewed, torch.randn(3, 4))
    assert targets(program)[0] == str(fake_quantize)
    assert not reasons(program)


class Weighted(nn.Module):
    """A linear layer with a quantized weight, by channel or by tensor."""

    def __init__(self, folded: bool, by_channel: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(6, 8)
        scale = weight.abs().amax(1) / 127 if by_channel else weight.abs().max() / 127
        self.given = (0, -127, 127, torch.int8) if by_channel else (-127, 127, torch.int8)
        self.quantize = ops.quantize_per_channel if by_channel else ops.quantize_per_tensor
        self.dequantize = ops.dequantize_per_channel if by_channel else ops.dequantize_per_tensor
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros_like(scale, dtype=torch.int64))
        codes = self.quantize(weight, self.scale, self.zero, *self.given)
        self.register_buffer("held", codes if folded else weight)
        self.folded = folded

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes = self.held
        if not self.folded:
            codes = self.quantize(codes, self.scale, self.zero, *self.given)
        return F.linear(x, self.dequantize(codes, self.scale, self.zero, *self.given))


@pytest.mark.parametrize("folded", (True, False))
@pytest.mark.parametrize("by_channel", (True, False))
def test_a_weight_is_held_as_codes(folded: bool, by_channel: bool) -> None:
    """Folded to floating point, the weight would be four times as large as what was asked for."""
    program = rewritten(Weighted(folded, by_channel), torch.randn(3, 8))
    (node,) = [node for node in program.calls() if node.target == dequantize]
    codes = program.constant(node.args[0])  # type: ignore[arg-type]
    assert codes is not None and codes.dtype == torch.int8
    assert not reasons(program)


def test_groups_of_a_row() -> None:
    """INT4 weights of torchao's PT2E flow would become floating point."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randint(-8, 8, (6, 64), dtype=torch.int8))
            self.register_buffer("scale", torch.rand(6, 2) + 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = ops.dequantize_per_channel_group(
                self.codes, self.scale, None, -8, 7, torch.int8, 32, torch.float32
            )
            return F.linear(x, weight)

    program = rewritten(Grouped(), torch.randn(3, 64))
    (node,) = [node for node in program.calls() if node.target == dequantize]
    assert node.args[2] == "int4"


@pytest.mark.parametrize(
    ("given", "word"),
    (
        ((0.02, 12, *INT8), "zero point 12"),
        ((0.02, 128, 0, 255, torch.uint8), "zero point 128"),
        ((0.02, 0, 0, 127, torch.int8), "range 0 to 127"),
    ),
)
def test_what_is_not_symmetric_says_so(given: Any, word: str) -> None:
    """A user of an affine quantizer would not learn why nothing runs in INT8."""
    program = rewritten(lambda x: round_trip(x, *given).relu(), torch.randn(3, 4))
    told = [reason for reason in reasons(program) if word in reason]
    assert any(reason.startswith("quantized_decomposed.quantize_per_tensor ") for reason in told)
    assert all("SinglecardQuantizer" in reason for reason in told)


def test_a_weight_with_a_zero_point_says_so() -> None:
    """Taken as symmetric, every weight would be off by the zero point."""
    module = Weighted(True)
    module.zero.fill_(100)
    program = rewritten(module, torch.randn(3, 8))
    assert any("zero point 100: TensorRT takes symmetric" in text for text in reasons(program))


def test_codes_read_with_another_scale_stay() -> None:
    """Taken for one rounding, the value would be scaled wrongly."""

    def rescaled(x: torch.Tensor) -> torch.Tensor:
        codes = ops.quantize_per_tensor(x, 0.02, 0, *INT8)
        return ops.dequantize_per_tensor(codes, 0.04, 0, *INT8)  # type: ignore[no-any-return]

    assert any("another scale" in reason for reason in reasons(rewritten(rescaled, torch.randn(4))))


def test_scales_of_the_moment_stay_in_pytorch() -> None:
    """An engine would need a scale that only each call knows."""

    def dynamic(x: torch.Tensor) -> torch.Tensor:
        scale, zero = ops.choose_qparams(x, -128, 127, 1e-5, torch.int8)
        return round_trip(x, scale, zero, *INT8)

    told = {text for text in reasons(rewritten(dynamic, torch.randn(3, 4))) if "decomposed" in text}
    assert len(told) == 3 and all("dynamic quantization" in reason for reason in told)


def test_pytorchs_own_simulated_quantization() -> None:
    """Models trained with fake quantization would lose it, or run in eager PyTorch."""

    class Simulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))
            self.register_buffer("scale", self.weight.detach().abs().amax(1) / 127)
            self.register_buffer("zero", torch.zeros(6, dtype=torch.int32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.fake_quantize_per_tensor_affine(x, 0.02, 0, -128, 127)
            weight = torch.fake_quantize_per_channel_affine(
                self.weight, self.scale, self.zero, 0, -127, 127
            )
            return F.linear(x, weight)

    program = rewritten(Simulated(), torch.randn(3, 8))
    assert {str(fake_quantize), str(dequantize)} <= set(targets(program))
    assert not reasons(program)


library = torch.library.Library("tensorrt", "FRAGMENT")


def test_modelopts_quantizers() -> None:
    """Models that ModelOpt quantized and exported would not compile."""
    library.define(
        "quantize_op(Tensor input, Tensor amax, int num_bits, int exponent_bits, bool unsigned,"
        " bool narrow_range) -> Tensor"
    )

    def quantize_op(x: torch.Tensor, amax: torch.Tensor, bits: int, *rest: Any) -> torch.Tensor:
        step = amax / 127
        return torch.round(x / step).clamp(-127, 127) * step

    library.impl("quantize_op", quantize_op, "CompositeExplicitAutograd")
    torch.library.register_fake("tensorrt::quantize_op", lambda x, *rest: torch.empty_like(x))

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 8))
            self.register_buffer("rows", self.weight.detach().abs().amax(1, keepdim=True))
            self.register_buffer("largest", torch.tensor(4.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            op = torch.ops.tensorrt.quantize_op
            x = op(x, self.largest, 8, 0, False, True)
            return F.linear(x, op(self.weight, self.rows, 8, 0, False, True))

    program = rewritten(Exported(), torch.randn(3, 8))
    assert {str(fake_quantize), str(dequantize)} <= set(targets(program))
    assert not reasons(program)
