"""Weights that plain arithmetic makes floating point become codes and scales again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from singlecard.capture.program import Program
from singlecard.capture.quantized import dequantize
from singlecard.passes import simplify
from singlecard.passes.weight_codes import constant_value
from tests.graphs import answers, fired, program_of, targets


class Coded(nn.Module):
    """Codes, scales and zero points; what is done to them is the test's."""

    def __init__(self, function: Any, codes: torch.Tensor, scale: torch.Tensor, zero: int = 0):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.full(scale.shape, zero, dtype=torch.int8))
        self.bias = nn.Parameter(torch.randn(codes.shape[0]))
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def rewritten(module: nn.Module, x: torch.Tensor) -> Program:
    """Simplify a Program, and prove that its answers are the same but for rounding."""
    program = program_of(module, x)
    before = answers(program, x, double=False)
    simplify(program)
    program.check()
    for got, want in zip(answers(program, x, double=False), before, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
    return program


def kinds(program: Program) -> list[Any]:
    return [node.args[2] for node in program.calls() if node.target == dequantize]


def codes(low: int, high: int, *shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(low, high + 1, shape, dtype=torch.int8)


def in_groups(module: Any, x: torch.Tensor) -> torch.Tensor:
    rows, groups = module.scale.shape
    wide = module.codes.view(rows, groups, -1).float() - module.zero.view(rows, groups, 1).float()
    return F.linear(x, (wide * module.scale.view(rows, groups, 1)).view(rows, -1), module.bias)


class Tower(nn.Module):
    """Additions of what lies before them to something made of it: 2^40 ways lead down."""

    def __init__(self, constant: bool) -> None:
        super().__init__()
        self.register_buffer("start", torch.ones(3))
        self.constant = constant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.start if self.constant else x
        for _ in range(40):
            value = value + value.neg() * 0.5
        return value + x


@pytest.mark.parametrize("constant", [False, True])
def test_residual_additions_are_looked_through_once(constant: bool) -> None:
    """INT8 of ResNets and of language models did not end."""
    program = program_of(Tower(constant), torch.ones(3))
    last = list(program.calls())[-2]
    found = constant_value(program, last)
    assert (found is not None) == constant
    if found is not None:
        assert torch.equal(found, torch.full((3,), 0.5**40))


def test_groups_become_blocks() -> None:
    """INT4 weights of tensor subclasses would be FP16 weights in the engine."""
    module = Coded(in_groups, codes(-8, 7, 6, 64), torch.rand(6, 2) + 0.1)
    program = rewritten(module, torch.randn(3, 64))
    assert kinds(program) == ["int4"]
    assert targets(program)[-1] == "aten.linear.default"


def test_zero_points_are_taken_from_the_codes() -> None:
    """Without them, all weights of a group would be shifted."""
    module = Coded(in_groups, codes(-8, 7, 6, 64), torch.rand(6, 2) + 0.1, zero=3)
    assert kinds(rewritten(module, torch.randn(3, 64))) == ["int8"]  # codes from -11 to 4


def test_codes_beyond_int8_are_left() -> None:
    """Their differences would wrap around."""
    module = Coded(in_groups, codes(-128, 127, 6, 64), torch.rand(6, 2) + 0.1, zero=100)
    assert kinds(rewritten(module, torch.randn(3, 64))) == []


def test_scales_that_are_not_positive_are_left() -> None:
    """TensorRT takes positive scales alone: the engine would not build."""
    module = Coded(in_groups, codes(-8, 7, 6, 64), torch.randn(6, 2))
    assert kinds(rewritten(module, torch.randn(3, 64))) == []


def scaled_product(module: Any, x: torch.Tensor) -> torch.Tensor:
    return x @ module.codes.t().float() * module.scale + module.bias  # type: ignore[no-any-return]


def test_a_product_that_is_scaled_later() -> None:
    """In FP16, the product of values and bare codes would leave the range before its scale."""
    module = Coded(scaled_product, codes(-127, 127, 6, 64), torch.rand(6) + 0.1)
    program = rewritten(module, torch.randn(3, 64))
    assert kinds(program) == ["int8"]
    assert {"name_scaled_product", "join_bias", "gain_channels"} <= fired(program)


def test_a_product_that_something_else_reads_too() -> None:
    """The other reader wants the product before it is scaled."""

    def twice(module: Any, x: torch.Tensor) -> Any:
        product = x @ module.codes.t().float()
        return product * module.scale, product.sum(0)

    module = Coded(twice, codes(-127, 127, 6, 64), torch.rand(6) + 0.1)
    assert "name_scaled_product" not in fired(rewritten(module, torch.randn(3, 64)))


def test_a_scale_for_each_row_of_the_result() -> None:
    """Taken for scales of the weight's channels, results would be scaled by the wrong number."""

    def by_row(module: Any, x: torch.Tensor) -> torch.Tensor:
        return x @ module.codes.t().float() * module.scale.view(-1, 1)  # type: ignore[no-any-return]

    module = Coded(by_row, codes(-127, 127, 6, 64), torch.rand(6) + 0.1)
    assert "name_scaled_product" not in fired(rewritten(module, torch.randn(6, 64)))


def test_pytorchs_packed_product() -> None:
    """Models exported for a CPU have this op: it would stay in PyTorch."""

    def packed(module: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int8pack_mm(x, module.codes, module.scale)  # type: ignore[no-any-return]

    scale = torch.rand(6, dtype=torch.float32) + 0.1
    module = Coded(packed, codes(-127, 127, 6, 64), scale)
    assert kinds(rewritten(module, torch.randn(3, 64))) == ["int8"]


def test_a_bias_of_another_shape_stays_an_addition() -> None:
    """A linear layer has a bias for each channel: other sums would change their meaning."""

    def shifted(module: Any, x: torch.Tensor) -> torch.Tensor:
        weight = module.codes.float() * module.scale.view(-1, 1)
        return F.linear(x, weight) + module.bias.view(-1, 1)  # type: ignore[no-any-return]

    module = Coded(shifted, codes(-127, 127, 6, 64), torch.rand(6) + 0.1)
    assert "join_bias" not in fired(rewritten(module, torch.randn(6, 64)))
