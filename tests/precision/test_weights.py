"""Weights as codes: what is held, what saturates, and grids that are found again."""

from __future__ import annotations

import pytest
import torch

from singlecard.precision.weights import by_blocks, by_gains, by_row_scales


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_gains_hold_rows_of_very_different_ranges() -> None:
    """A row a thousand times smaller than another keeps its precision."""
    values = weight(8, 64)
    values[3] *= 1e-3
    error = by_gains(values, "int8").value() - values
    for row in range(8):
        step = float(values[row].abs().max()) / 127
        assert float(error[row].abs().max()) <= 0.51 * step * 1.001, row


def test_no_code_saturates() -> None:
    """Gains are rounded up: the largest element of every row fits, and none wraps to -128."""
    for seed in range(20):
        codes = by_gains(weight(32, 16, seed), "int8").codes
        assert int(codes.min()) >= -127 and int(codes.max()) <= 127
        assert (codes.abs().amax(1) >= 126).all()


def test_a_weight_of_zeros_has_codes_of_zeros() -> None:
    """A pruned layer must not divide by zero."""
    quantized = by_gains(torch.zeros(4, 8), "int8")
    assert not quantized.value().any() and torch.isfinite(quantized.scale)
    assert not by_blocks(torch.zeros(4, 128), 128).value().any()
    assert not by_row_scales(torch.zeros(4, 8)).value().any()


def test_weights_share_a_scale() -> None:
    """Query, key and value become one product only if the builder sees one scale."""
    first, second = weight(8, 64), 3 * weight(8, 64, 1)
    largest = float(second.abs().max())
    a, b = by_gains(first, "int8", largest), by_gains(second, "int8", largest)
    assert torch.equal(a.scale, b.scale)
    for quantized, value in ((a, first), (b, second)):
        assert float((quantized.value() - value).norm() / value.norm()) < 0.01


@pytest.mark.parametrize("top", range(1, 8))
def test_values_on_a_grid_are_found_again(top: int) -> None:
    """What GPTQ rounded must not be rounded again: its choices would be lost."""
    random = torch.Generator().manual_seed(top)
    codes = torch.randint(-top, top + 1, (16, 128), generator=random).float()
    codes[:, 0] = top
    scale = torch.rand(16, 1, generator=random).half().float() + 0.5
    scale = scale.half().float()
    assert torch.equal(by_blocks(codes * scale, 128).value(), codes * scale)


def test_blocks_are_better_than_the_largest_element_alone() -> None:
    """An outlier in a block must not cost all others their precision where it need not."""
    values = weight(64, 256)
    blocks = values.reshape(64, 2, 128)
    scale = (blocks.abs().amax(2, keepdim=True) / 7).half().float()
    plain = ((blocks / scale).round().clamp(-8, 7) * scale).reshape(values.shape)
    ours = by_blocks(values, 128).value()
    assert float((ours - values).norm()) < 0.95 * float((plain - values).norm())


def test_fp8_holds_its_range() -> None:
    """FP8 beyond 448 would be NaN: a scale must bring the largest element to it, not beyond."""
    quantized = by_gains(1e3 * weight(8, 64), "fp8")
    assert torch.isfinite(quantized.value()).all()
    assert float(quantized.codes.float().abs().max()) <= 448
