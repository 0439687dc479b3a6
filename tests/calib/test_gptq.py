"""Rounding of single weights: exact scales, and that GPTQ is GPTQ."""

from __future__ import annotations

import doctest

import pytest
import torch

from singlecard_calib import gptq as calib_gptq
from singlecard_calib.gptq import LARGEST, best_scale, gptq, nearest
from tests.calib.rounding import correlated


def test_each_row_in_int8_has_the_largest_code() -> None:
    """The backend takes a row's largest magnitude for code 127: with 126 there, all codes of it
    would be others than those that GPTQ chose."""
    inputs = correlated(400, 200)
    weight = torch.randn(512, 200, generator=torch.Generator().manual_seed(6))
    values = gptq(weight, 2 * inputs.T @ inputs, 127, 200, 0.01)
    scale = values.abs().amax(1, keepdim=True) / 127
    assert torch.equal(scale, scale.half().float())
    codes = values / scale
    assert float((codes - codes.round()).abs().max()) < 1e-4


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_and_codes_are_exact(bits: int) -> None:
    """A scale that FP16 rounds again in the engine would move every weight of its block."""
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(1)) * 0.02
    scale = best_scale(weight, LARGEST[bits])
    assert torch.equal(scale, scale.half().float())
    codes = nearest(weight, LARGEST[bits], 128).double() / scale.double()
    assert torch.equal(codes, codes.round()) and float(codes.abs().max()) == LARGEST[bits]


def test_saturating_a_little_beats_the_full_range() -> None:
    """One outlier must not cost all others their precision."""
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(2))
    step = weight.abs().amax(1, keepdim=True) / 7
    full = (weight / step).round() * step
    searched = nearest(weight, 7, 128)
    assert float((searched - weight).norm()) < 0.95 * float((full - weight).norm())


def test_zeros_and_outliers() -> None:
    """An empty block has no scale of its own, and must not become NaN."""
    weight = torch.zeros(4, 128)
    weight[1, :64] = 1e-9
    weight[2, 5] = 1e4
    assert torch.equal(nearest(weight, 7, 64)[[0, 3]], torch.zeros(2, 128))
    assert float(nearest(weight, 7, 64)[2, 5]) == pytest.approx(1e4, rel=1e-3)
    hessian = 2 * torch.eye(128)
    assert bool(torch.isfinite(gptq(weight, hessian, 7, 64, 0.01)).all())


def textbook(weight: torch.Tensor, inputs: torch.Tensor, block: int, largest: int) -> torch.Tensor:
    """Round column by column, solving for the columns behind anew each time: OBQ in fixed order.

    Nothing is shared with the implementation but the search for scales: no factor, no lazy blocks.
    """
    weight = weight.double()
    hessian = 2 * inputs.double().T @ inputs.double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    for column in range(weight.shape[1]):
        if column % block == 0:
            scale = best_scale(weight[:, column : column + block].float(), largest).double()
        value = weight[:, column : column + 1]
        rounded = (value / scale).round().clamp(-largest, largest) * scale
        behind = hessian[column + 1 :, column + 1 :]
        # The columns behind minimize the damped error, given the error of this one.
        shift = torch.linalg.solve(behind, hessian[column + 1 :, column : column + 1])
        weight[:, column + 1 :] += (value - rounded) @ shift.T
        weight[:, column : column + 1] = rounded
    return weight.float()


@pytest.mark.parametrize(("width", "block"), [(96, 32), (128, 128), (320, 64)])
def test_gptq_agrees_with_its_definition(width: int, block: int) -> None:
    """A slip in the factor or the lazy blocks still looks like rounding, only worse."""
    inputs = correlated(4 * width, width)
    weight = torch.randn(6, width, generator=torch.Generator().manual_seed(3))
    mine = gptq(weight, 2 * inputs.T @ inputs, 7, block, 0.01)
    expected = textbook(weight, inputs, block, 7)
    # A value in the middle of two codes may fall to either side, and what follows it differs then.
    assert int((mine != expected).any(1).sum()) <= 1
    assert not torch.equal(mine, nearest(weight, 7, block))


def test_examples() -> None:
    """Examples are copied."""
    assert doctest.testmod(calib_gptq).failed == 0
