"""Counts are exact, whatever the order and wherever they were made."""

from __future__ import annotations

import base64
import json
import math
import zlib

import numpy as np
import pytest
import torch

from singlecard_calib.observe import BINS, Histogram


def seen(*values: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram


def equal(a: Histogram, b: Histogram) -> bool:
    return (a.limit, a.zeros) == (b.limit, b.zeros) and bool((a.counts == b.counts).all())


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scales = (1.0, 0.001, 37.0, 4.0, 0.0, 1000.0)
    return [torch.randn(7, 50, generator=generator) * scale for scale in scales]


def test_counts_are_those_of_all_data_at_once() -> None:
    """A range that grows must not move elements to other bins than they belong to."""
    histogram, values = seen(*batches()), torch.cat(batches()).abs().flatten()
    expected, _ = np.histogram(values[values > 0].numpy(), BINS, (0, histogram.limit))
    assert (histogram.counts == expected).all()
    assert histogram.total == values.numel()
    assert histogram.zeros == int((values == 0).sum())
    assert histogram.limit / 2 < float(values.max()) <= histogram.limit


def test_order_does_not_count() -> None:
    """Shuffled data must give the same scales, or no result can be repeated."""
    assert equal(seen(*batches()), seen(*batches()[::-1]))


@pytest.mark.parametrize("cut", range(7))
def test_parts_merge_into_the_whole(cut: int) -> None:
    """Shards on several machines, the empty one too, must give what one machine gives."""
    first, second = seen(*batches()[:cut]), seen(*batches()[cut:])
    before = second.to_dict()
    first.merge(second)
    assert equal(first, seen(*batches()))
    assert second.to_dict() == before


@pytest.mark.parametrize("value", [1.0, 0.5, 1024.0, 2.0**-140, 3.3e38])
def test_ends_of_ranges(value: float) -> None:
    """A power of two, a subnormal and the largest numbers fall into the last bins, not outside."""
    histogram = seen(torch.tensor([value, -value]))
    assert histogram.counts.sum() == 2
    assert value <= histogram.limit < 2 * value or math.isinf(histogram.limit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    """Models in half precision are calibrated in it."""
    values = torch.linspace(-3, 3, 101).to(dtype)
    assert equal(seen(values), seen(values.float()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_values_change_nothing(bad: float) -> None:
    """One NaN in a batch must be told, and must not spoil what was counted before."""
    histogram = seen(torch.ones(3))
    with pytest.raises(ValueError, match="NaN|infinite"):
        histogram.add(torch.tensor([1.0, bad, 500.0]))
    assert equal(histogram, seen(torch.ones(3)))


def test_nothing_and_zeros() -> None:
    """A tensor that is always zero has no range; an empty batch says nothing."""
    assert equal(seen(torch.ones(0)), Histogram())
    histogram = seen(torch.zeros(2, 3))
    assert (histogram.limit, histogram.zeros, histogram.total) == (0.0, 6, 6)


def test_plain_values_and_back() -> None:
    """Tables are JSON: what comes back must be what went in."""
    histogram = seen(*batches())
    assert equal(Histogram.from_dict(json.loads(json.dumps(histogram.to_dict()))), histogram)


def test_counts_are_packed() -> None:
    """A list of 8,192 numbers for each tensor is megabytes of a table that people look into."""
    assert len(json.dumps(seen(*batches()).to_dict())) < 2_000
    large = seen(*batches())
    large.counts *= 1 << 40
    assert equal(Histogram.from_dict(large.to_dict()), large)


def packed(*counts: int, size: int = BINS) -> str:
    whole = np.zeros(size, np.int64)
    whole[: len(counts)] = counts
    planes = whole.view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(planes.tobytes())).decode()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"limit": 1.0, "zeros": 0, "counts": packed(-1)},
        {"limit": 1.0, "zeros": -1, "counts": packed()},
        {"limit": 3.0, "zeros": 0, "counts": packed(1)},
        {"limit": 0.0, "zeros": 0, "counts": packed(1)},
        {"limit": 1.0, "zeros": 0, "counts": packed(1, size=BINS + 1)},
        {"limit": 1.0, "zeros": 0, "counts": packed(1, size=BINS - 1)},
        {"limit": 1.0, "zeros": 0, "counts": packed(1)[:-12]},
        {"limit": 1.0, "zeros": 0, "counts": packed(1)[:-8] + "AAAAAAA="},
        {"limit": 1.0, "zeros": 0, "counts": "many"},
        {"limit": 1.0, "zeros": 0, "counts": [1]},
    ],
)
def test_damaged_values_are_refused(values: dict[str, object]) -> None:
    """A table that was cut off or edited wrongly must not become a scale."""
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_dict(values)
