"""Scales of a weight's channels, moved behind the product that reads the weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from singlecard.capture.program import Program
from singlecard.capture.quantized import codes_of, dequantize
from singlecard.passes import simplify
from tests.graphs import answers, fired, program_of, targets


class Quantized(nn.Module):
    """An op whose weight is INT8, with a scale for each output channel."""

    def __init__(self, op: Any, *shape: int, kind: str = "int8", spread: float = 4.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        weight = torch.randn(shape) * torch.logspace(0, spread, shape[0], 2.0).reshape(
            -1, *[1] * (len(shape) - 1)
        )
        scale = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (len(shape) - 1)) / 127
        self.register_buffer("codes", codes_of(weight, scale, kind))
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(torch.randn(shape[0]))
        self.op, self.kind = op, kind

    def weight(self) -> torch.Tensor:
        return dequantize(self.codes, self.scale, self.kind, torch.float32)  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> Any:
        return self.op(x, self.weight(), self.bias)


def rewritten(module: nn.Module, x: torch.Tensor) -> Program:
    """Simplify a Program, and prove that its answers are the same but for rounding."""
    program = program_of(module, x)
    before = answers(program, x, double=False)
    simplify(program)
    program.check()
    for got, want in zip(answers(program, x, double=False), before, strict=True):
        assert (got - want).norm() <= 1e-6 * want.norm()
    return program


def scales(program: Program) -> list[torch.Tensor]:
    nodes = [node for node in program.calls() if node.target == dequantize]
    found = [program.constant(node.args[1]) for node in nodes]  # type: ignore[arg-type]
    return [item for item in found if item is not None]


def test_a_linear_layer_has_one_scale_and_gains() -> None:
    """A W8A8 product would write FP32, and one row would read its INT8 weight as FP16."""
    program = rewritten(Quantized(F.linear, 6, 8), torch.randn(2, 3, 8))
    assert targets(program) == [
        "singlecard.dequantize.default",
        "aten.linear.default",
        "aten.mul.Tensor",
        "aten.add.Tensor",
    ]
    assert [scale.ndim for scale in scales(program)] == [0]


def test_a_convolution_has_its_gains_along_its_channels() -> None:
    """Along another axis, features would be scaled by the wrong channel's number."""
    for dims, op in ((1, F.conv1d), (2, F.conv2d), (3, F.conv3d)):
        module = Quantized(op, 6, 4, *[3] * dims)
        program = rewritten(module, torch.randn(2, 4, *[6] * dims))
        assert targets(program)[-2:] == ["aten.mul.Tensor", "aten.add.Tensor"]
        assert [scale.ndim for scale in scales(program)] == [0]


def test_linear_layers_that_read_one_tensor_share_a_scale() -> None:
    """Queries, keys and values would no longer be one product."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Quantized(F.linear, 6, 8), Quantized(F.linear, 5, 8, spread=2.0)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(x)

    first, second = scales(rewritten(Two(), torch.randn(3, 8)))
    assert first.ndim == 0
    assert torch.equal(first, second)


def test_gains_that_fp16_cannot_hold_stay_scales() -> None:
    """A channel of small weights would lose digits, or vanish, in an FP16 network."""
    program = rewritten(Quantized(F.linear, 6, 8, spread=20.0), torch.randn(3, 8))
    assert "gain_channels" not in fired(program)
    assert [scale.shape for scale in scales(program)] == [(6, 1)]


def test_a_transposed_convolution_keeps_its_scales() -> None:
    """Its first axis is the input's: gains behind it would multiply other channels."""
    op = lambda x, weight, bias: F.conv_transpose2d(x, weight)  # noqa: E731
    program = rewritten(Quantized(op, 4, 6, 3, 3), torch.randn(1, 4, 5, 5))
    assert "gain_channels" not in fired(program)


def test_a_weight_that_is_read_by_something_else_keeps_its_scales() -> None:
    """The other reader needs the weight itself."""

    class Tied(Quantized):
        def forward(self, x: torch.Tensor) -> Any:
            weight = self.weight()
            return F.linear(x, weight), weight.sum(1)

    program = rewritten(Tied(F.linear, 6, 8), torch.randn(3, 8))
    assert "gain_channels" not in fired(program)


def test_int4_keeps_its_scales() -> None:
    """INT4 has a scale for each block, which is not one for each channel."""
    program = rewritten(Quantized(F.linear, 6, 64, kind="int4"), torch.randn(3, 64))
    assert "gain_channels" not in fired(program)
