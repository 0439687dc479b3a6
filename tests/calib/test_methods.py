"""Thresholds are what their names promise."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch

import singlecard_calib
from singlecard_calib.methods import BINS, LEVELS, METHODS, entropy, mse, percentile
from singlecard_calib.observe import MOMENTUM, Histogram, Observer


def observer(*batches: torch.Tensor) -> Observer:
    seen = Observer()
    for batch in batches:
        seen.add(batch)
    return seen


def normal(count: int = 200_000, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) * scale


def quantized(values: torch.Tensor, threshold: float) -> torch.Tensor:
    step = threshold / LEVELS
    return (values / step).round().clamp(-LEVELS, LEVELS) * step


def test_min_max_is_the_largest_of_all() -> None:
    """Cutting off what was seen is not what min-max is chosen for."""
    assert METHODS["min-max"](observer(torch.tensor([1.0, -7.5]), torch.ones(2))) == 7.5


def test_moving_average_follows_its_definition() -> None:
    """The first batch counts in full, each later one by the momentum."""
    seen = observer(torch.tensor([4.0]), torch.tensor([-8.0]), torch.tensor([0.0]))
    expected = (4.0 + MOMENTUM * 4.0) * (1 - MOMENTUM)
    assert METHODS["moving-average"](seen) == pytest.approx(expected)


@pytest.mark.parametrize("share", [50.0, 99.0, 99.9, 99.99])
def test_percentile_is_that_of_all_magnitudes(share: float) -> None:
    """Zeros are elements too: after a ReLU they are half of all."""
    values = normal().relu()
    expected = float(np.percentile(values.numpy(), share, method="inverted_cdf"))
    seen = observer(values)
    assert 0 <= percentile(seen, share) - expected <= seen.histogram.width


@pytest.mark.parametrize("share", [0.0, -1.0, 100.5])
def test_percentile_out_of_range(share: float) -> None:
    """A share of 1 for 100 percent would silently cut off all."""
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        percentile(observer(torch.ones(2)), share)


def test_mse_is_near_the_best_of_all_thresholds() -> None:
    """The method is chosen for its error: another threshold must not have a much smaller one."""
    values = normal()
    errors = {
        end: float((quantized(values, end) - values).square().mean())
        for end in np.linspace(1.0, float(values.abs().max()), 200)
    }
    chosen = mse(observer(values))
    assert float((quantized(values, chosen) - values).square().mean()) <= 1.02 * min(
        errors.values()
    )


@pytest.mark.parametrize("method", [entropy, mse, percentile])
def test_one_outlier_does_not_set_the_scale(method: object) -> None:
    """With min-max, one element of a hundred thousand takes most bits from all others."""
    values = torch.cat([normal(), torch.tensor([60.0])])
    threshold = method(observer(values))  # type: ignore[operator]
    assert 2.0 < threshold < 30.0


def test_entropy_keeps_the_range_of_an_even_distribution() -> None:
    """Where all magnitudes are as frequent, cutting any off loses information."""
    values = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    assert entropy(observer(values)) > 0.95


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**10])
def test_thresholds_scale_with_the_data(method: object, factor: float) -> None:
    """Units are the model's business: a scale of thousandths must be as good."""
    seen, scaled = observer(normal()), observer(normal() * factor)
    expected = method(seen) * factor  # type: ignore[operator]
    assert method(scaled) == pytest.approx(expected, rel=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_zeros_and_single_values(method: object) -> None:
    """A dead channel has no threshold but zero; a constant one has its own, to a bin's width."""
    assert method(observer(torch.zeros(8))) == 0.0  # type: ignore[operator]
    assert method(observer(torch.full((8,), 3.0))) == pytest.approx(3.0, abs=3.0 / BINS)  # type: ignore[operator]


def test_observers_merge_as_if_one_had_seen_all() -> None:
    """Two processes with half the data each must choose as one does."""
    whole, first, second = (
        observer(normal(), normal() * 2),
        observer(normal()),
        observer(normal() * 2),
    )
    first.merge(second)
    for name, method in METHODS.items():
        if name != "moving-average":
            assert method(first) == method(whole)
    assert first.batches == 2
    assert Observer.from_dict(first.to_dict()).to_dict() == first.to_dict()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "batches": 1,
            "largest": 5.0,
            "average": 1.0,
            "histogram": {**Histogram().to_dict(), "limit": 1.0},
        },
    ],
)
def test_damaged_observers_are_refused(values: dict[str, object]) -> None:
    """Numbers that contradict each other were edited or cut off."""
    with pytest.raises(ValueError, match="not an observer"):
        Observer.from_dict(values)


def test_integers_are_refused() -> None:
    """Token ids have no scale."""
    with pytest.raises(ValueError, match="torch.int64"):
        observer(torch.arange(3))


def test_example_of_the_package_runs() -> None:
    """The first thing that a reader copies."""
    result = doctest.testmod(singlecard_calib)
    assert result.attempted > 0 and result.failed == 0
