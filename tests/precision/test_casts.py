"""FP16 and BF16: what must stay in FP32 does, and types at the door do not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from singlecard.capture.program import Program
from singlecard.network.types import COMPUTABLE
from singlecard.passes import simplify
from singlecard.precision.casts import lower_precision
from tests.graphs import answers, program_of, targets

aten = torch.ops.aten


def lowered(
    module: Callable[..., Any],
    *args: torch.Tensor,
    dtype: torch.dtype = torch.float16,
    stays: Callable[[Any], bool] = lambda node: False,
) -> Program:
    program = program_of(module, *args)
    simplify(program)
    lower_precision(program, dtype, stays)
    simplify(program)
    program.check()
    return program


def run(module: Callable[..., Any], *args: torch.Tensor, dtype: torch.dtype = torch.float16) -> Any:
    """The answers of the lowered graph, run with the types that it declares."""
    program = lowered(module, *args, dtype=dtype)
    results = answers(program, *args, double=False)
    for node, value in zip(program.outputs, results, strict=True):
        assert value.dtype == node.meta["val"].dtype
    return results


def low_ops(program: Program, dtype: torch.dtype = torch.float16) -> set[str]:
    return {
        str(node.target)
        for node in program.calls()
        if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dtype == dtype
    }


def test_linear_layer_computes_in_half() -> None:
    """precision="fp16" that computes in FP32 gives a user neither speed nor memory."""
    program = lowered(nn.Linear(4, 4), torch.randn(2, 4))
    assert "aten.linear.default" in low_ops(program)
    assert all(value.dtype == torch.float16 for value in program.module.buffers())
    assert program.outputs[0].meta["val"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_beyond_2048_are_exact(dtype: torch.dtype) -> None:
    """FP16 cannot tell position 2049 from 2048: a long prompt would lose its order."""
    positions = torch.tensor([2047, 2048, 2049, 4097])

    def angles(positions: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (positions.float() * 0.01).cos() * x

    x = torch.ones(4)
    (got,) = run(angles, positions, x, dtype=dtype)
    torch.testing.assert_close(got, angles(positions, x), rtol=0, atol=5e-3)
    program = lowered(angles, positions, x, dtype=dtype)
    assert "aten.cos.default" not in low_ops(program, dtype)
    assert "aten.mul.Tensor" in low_ops(program, dtype)


def test_network_on_integers_still_computes_in_half() -> None:
    """An image that comes as integers must not keep its whole network in FP32."""
    layer = nn.Conv2d(3, 4, 3)
    program = lowered(lambda x: layer(x.float() / 255), torch.ones(1, 3, 8, 8, dtype=torch.int32))
    assert "aten.convolution.default" in low_ops(program)


def test_sums_and_their_squares_are_fp32() -> None:
    """A squared activation of 300 exceeds FP16: the norm of a real model becomes NaN or zero."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + 1e-5)

    x = torch.randn(2, 64) * 600
    torch.testing.assert_close(run(norm, x)[0], norm(x), rtol=1e-2, atol=1e-2)


def test_epsilon_of_a_constant_row_survives() -> None:
    """1e-12 is zero in FP16: a row of padding would turn into NaN."""

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)

    x = torch.randn(2, 64)
    x[0] = 0
    torch.testing.assert_close(run(norm, x)[0], norm(x), rtol=1e-2, atol=1e-2)


def test_sum_beyond_the_range_stays_a_number() -> None:
    """A sum over 100,000 elements exceeds 65504 although its mean is small."""
    x = torch.ones(2, 100_000)
    (got,) = run(lambda x: x.sum(-1) / x.shape[-1], x)
    torch.testing.assert_close(got, torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_of_lowest_numbers_are_not_infinite(dtype: torch.dtype) -> None:
    """A row that is masked as a whole (left padding) is uniform in eager; infinities give NaN."""
    lowest = torch.finfo(torch.float32).min
    scores, keep = torch.randn(2, 4), torch.tensor([[0, 0, 0, 0], [1, 0, 1, 0]])

    def added(keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ((1 - keep.float()) * lowest + x).softmax(-1)

    def chosen(keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.where(keep.bool(), x, lowest).softmax(-1)

    def filled(keep: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        empty = keep == 0
        return x.masked_fill(empty, lowest).softmax(-1)

    for mask in (added, chosen, filled):
        (got,) = run(mask, keep, scores, dtype=dtype)
        torch.testing.assert_close(got, mask(keep, scores), rtol=2e-2, atol=1e-2)


def test_constant_masks_are_not_infinite() -> None:
    """A mask kept as a buffer meets the same limit, while true infinities stay."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            mask = torch.full((2, 4), -3.4e38)
            mask[1] = torch.tensor([0, -torch.inf, 0, -torch.inf])
            self.register_buffer("mask", mask)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 0 + self.mask).softmax(-1)

    x = torch.zeros(2, 4)
    torch.testing.assert_close(run(Masked(), x)[0], Masked()(x), rtol=1e-3, atol=1e-3)


def test_outputs_of_tuples_keep_their_types() -> None:
    """A user's code behind the model meets the types that eager gives."""

    def model(x: torch.Tensor) -> Any:
        a, b = (x * 2).split(2)
        mean = x.mean()
        return a, b + 1, mean, x.argmax(), x > 0, x.half(), x.double()

    x = torch.randn(4)
    for got, want in zip(run(model, x), model(x), strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)


def test_integer_graph_is_untouched() -> None:
    """Casting what has no fractions would only add kernels."""
    program = lowered(lambda x: (x + 1) * x, torch.arange(4))
    assert targets(program) == ["aten.add.Tensor", "aten.mul.Tensor"]


def test_half_model_is_untouched() -> None:
    """A model that its user already converted has no casts to add."""
    program = lowered(nn.Linear(4, 4).half(), torch.randn(2, 4).half())
    assert targets(program) == ["aten.linear.default"]


def test_bfloat16_model_is_not_made_fp16() -> None:
    """A model in BF16 relies on its range: precision="fp16" speaks of FP32 parts only."""
    x = (torch.randn(2, 4) * 1e6).bfloat16()
    program = lowered(lambda x: x * 2, x)
    assert program.outputs[0].meta["val"].dtype == torch.bfloat16
    assert targets(program) == ["aten.mul.Tensor"]


def test_mixed_model_keeps_its_own_types() -> None:
    """Where a user mixed types on purpose only the FP32 parts change."""

    def model(x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x * 2 + h.float(), h * 2

    args = torch.randn(4), torch.randn(4).bfloat16()
    program = lowered(model, *args)
    first, second = program.outputs
    assert first.meta["val"].dtype == torch.float32
    assert second.meta["val"].dtype == torch.bfloat16


def test_ops_left_to_pytorch_get_their_own_types() -> None:
    """Eager PyTorch has no FP16 version of some ops: they must get what they were traced with."""
    program = lowered(
        lambda x: torch.special.bessel_j0(x * 2) + 1,
        torch.randn(4),
        stays=lambda node: "bessel" in str(node.target),
    )
    node = next(node for node in program.calls() if "bessel" in str(node.target))
    assert node.args[0].meta["val"].dtype == torch.float32
    assert torch.float16 in COMPUTABLE


def test_mutated_inputs_keep_their_types() -> None:
    """A cache in FP32 that gets FP16 values back would be refused by copy_, or lose its type."""

    def model(cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache.add_(x)
        return cache * 2

    program = lowered(model, torch.zeros(4), torch.ones(4))
    assert [node.meta["val"].dtype for node in program.outputs] == [torch.float32] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_keep_what_hides(dtype: torch.dtype) -> None:
    """A mask's lowest number leaves a row uniform; minus infinity, once a number, would too."""
    lowest = torch.finfo(torch.float32).min

    def attend(q: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor) -> Any:
        both = torch.nn.functional.scaled_dot_product_attention(q, q, q, mask + bias)
        return torch.nn.functional.scaled_dot_product_attention(q, q, q, mask), both

    q, mask = torch.randn(1, 2, 5, 8), torch.zeros(5, 5)
    mask[1, 2:], mask[2:] = lowest, -torch.inf
    mask[3, 0] = lowest
    inputs = q, mask, torch.rand(5, 5)
    for got, want in zip(run(attend, *inputs, dtype=dtype), attend(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)


def test_lowest_numbers_of_low_scores() -> None:
    """FP16's lowest number and a score below zero are minus infinity, and all of them are NaN."""
    mask = torch.full((1, 4), torch.finfo(torch.float32).min)
    q, k = torch.full((1, 1, 1, 16), 4.0), torch.full((1, 1, 4, 16), -4.0)
    assert (q @ k.mT / 4 < -32).all()
    attend = torch.nn.functional.scaled_dot_product_attention
    (got,) = run(lambda q, k, v, m: attend(q, k, v, m), q, k, torch.randn(k.shape), mask)
    assert got.isfinite().all()
