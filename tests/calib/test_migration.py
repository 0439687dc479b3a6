"""Range that moves from tensors to weights: less error than without, and than with a formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from singlecard.precision.weights import by_blocks, by_gains
from singlecard_calib.choose import divisors, rounded
from singlecard_calib.migration import migrate, with_headroom


def tensor_and_weight() -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor with outliers in some channels, as decoders have them."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(512, 128, generator=random)
    x[:, ::17] *= 30
    return x, 0.05 * torch.randn(256, 128, generator=random)


def error(x: torch.Tensor, weight: torch.Tensor, divisor: torch.Tensor, precision: str) -> float:
    """Return the relative error of a layer's outputs, quantized after the range has moved."""
    values, scaled = x / divisor, weight * divisor
    if precision == "int8":
        values = rounded(values, float(values.abs().max()))
    if precision == "int4-weight":
        held = by_blocks(scaled, 128).value()
    else:
        held = by_gains(scaled, "int8").value()
    right = F.linear(x, weight)
    return float((F.linear(values, held) - right).norm() / right.norm())


@pytest.mark.parametrize(("precision", "share"), [("int8", 0.6), ("int8-weight", 0.8)])
def test_outliers_cost_less(precision: str, share: float) -> None:
    """Without it, channels with outliers take the range of all others: answers go wrong."""
    x, weight = tensor_and_weight()
    block = None
    found = migrate(x.square().mean(0), x.abs().amax(0), [weight], precision, block)
    plain = error(x, weight, torch.ones(128), precision)
    assert error(x, weight, found, precision) < share * plain


def test_few_rows_leave_headroom() -> None:
    """What few rows showed of a channel is soon exceeded, in each: answers were 5 % off."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(24, 256, generator=random)
    many = torch.randn(2000, 256, generator=random)
    reach = with_headroom(x.square().mean(0), x.abs().amax(0), len(x))
    assert float((many.abs() > reach).float().mean()) < 0.01
    assert float((many.abs() > x.abs().amax(0)).float().mean()) > 0.02
    trusted = with_headroom(many.square().mean(0), many.abs().amax(0), len(many))
    assert torch.equal(trusted, many.abs().amax(0))


def test_is_no_worse_than_the_best_exponent() -> None:
    """SmoothQuant's formula with the best of its exponents is what a user would take."""
    x, weight = tensor_and_weight()
    found = migrate(x.square().mean(0), x.abs().amax(0), [weight], "int8")
    best = min(
        error(x, weight, divisors(x.abs().amax(0), [weight], strength / 10), "int8")
        for strength in range(1, 10)
    )
    assert error(x, weight, found, "int8") < 1.05 * best


def test_layers_that_read_one_tensor_are_weighed_together() -> None:
    """Query, key and value share a divisor: one that only suits the first would ruin the others."""
    x, weight = tensor_and_weight()
    other = weight.flip(1) * 5
    found = migrate(x.square().mean(0), x.abs().amax(0), [weight, other], "int8")
    for layer in (weight, other):
        assert error(x, layer, found, "int8") < 0.8 * error(x, layer, torch.ones(128), "int8")


def test_a_channel_of_zeros_is_no_trouble() -> None:
    """A dead channel has nothing to divide; it must not make the others NaN."""
    x, weight = tensor_and_weight()
    x[:, 5] = 0
    found = migrate(x.square().mean(0), x.abs().amax(0), [weight], "int8")
    assert torch.isfinite(found).all() and (found > 0).all()
