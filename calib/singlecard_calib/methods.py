"""From what was seen of a tensor to the largest magnitude that its quantized form holds.

All are symmetric: a tensor is quantized by ``round(x * levels / threshold)``, with 127 levels for
INT8. TensorRT takes no zero points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from singlecard_calib.observe import Histogram, Observer

#: Bins from zero to the largest magnitude, as TensorRT's entropy calibrators have them.
BINS = 2048

#: Levels of INT8 on each side of zero.
LEVELS = 127


def min_max(seen: Observer) -> float:
    """The largest magnitude seen: nothing is cut off."""
    return seen.largest


def moving_average(seen: Observer) -> float:
    """The average of the batches' largest magnitudes: one odd batch counts little."""
    return seen.average


def percentile(seen: Observer, share: float = 99.99) -> float:
    """The magnitude that ``share`` percent of all elements do not exceed, to the width of a bin.

    Raises:
        ValueError: ``share`` is not above 0 and at most 100.
    """
    if not 0 < share <= 100:
        raise ValueError(f"a percentile is above 0 and at most 100, got {share}")
    histogram = seen.histogram
    if share == 100 or not histogram.counts.any():
        return seen.largest
    wanted = share / 100 * histogram.total - histogram.zeros
    place = int(np.searchsorted(np.cumsum(histogram.counts), wanted))
    return min(seen.largest, (place + 1) * histogram.width)


def entropy(seen: Observer) -> float:
    """The threshold whose quantized distribution tells most of the seen one (least divergence).

    Source: S. Migacz, "8-bit inference with TensorRT", GTC 2017, which TensorRT's entropy
    calibrators follow: 2,048 bins of magnitudes; each range from 128 bins on is cut off, what lies
    beyond is added to its last bin, the range is merged into 128 levels and spread over its bins
    that are not empty; the range with the least Kullback-Leibler divergence wins.

    Values that fill fewer bins than there are levels are held as they are: any range that cuts off
    all but one of their bins has no divergence at all.
    """
    levels = LEVELS + 1
    counts = _filled(seen)
    if counts is None or np.count_nonzero(seen.histogram.counts) < levels:
        return seen.largest
    beyond = np.concatenate([np.cumsum(counts[::-1])[::-1][1:], [0.0]])
    best, least = BINS, np.inf
    for length in range(levels, BINS + 1):
        inside = counts[:length]
        reference = inside.copy()
        reference[-1] += beyond[length - 1]
        if not inside.any():
            continue
        divergence = _divergence(reference, _spread(inside, levels))
        if divergence < least:
            best, least = length, divergence
    return min(seen.largest, best * _width(seen))


def mse(seen: Observer) -> float:
    """The threshold with the least squared error, by the middles of bins, of 128 to 2,048 of them.

    Cut off too much, large elements are wrong by far; too little, all elements by half a level.
    """
    counts = _filled(seen)
    if counts is None:
        return seen.largest
    middles = (np.arange(BINS) + 0.5) * _width(seen)
    thresholds = (np.arange(LEVELS + 1, BINS) + 0.5) * _width(seen)
    errors = [
        float((counts * (np.minimum(_rounded(middles, end), end) - middles) ** 2).sum())
        for end in thresholds
    ]
    return min(seen.largest, float(thresholds[int(np.argmin(errors))]))


#: Ways to choose a threshold, by the names that `singlecard.calibrate` takes.
METHODS: Mapping[str, Callable[[Observer], float]] = MappingProxyType(
    {
        "min-max": min_max,
        "moving-average": moving_average,
        "percentile": percentile,
        "entropy": entropy,
        "mse": mse,
    }
)


def _width(seen: Observer) -> float:
    """Return the width of bins when they are laid over what was seen, and no further."""
    return seen.largest / BINS


def _filled(seen: Observer) -> np.ndarray | None:
    """Return counts of `BINS` bins up to the largest magnitude; None where all were zero.

    A histogram's own range is the next power of two. Elements are taken as evenly spread in a bin.
    """
    histogram: Histogram = seen.histogram
    if not histogram.counts.any():
        return None
    edges = np.arange(len(histogram.counts) + 1) * histogram.width
    running = np.concatenate([[0], np.cumsum(histogram.counts)]).astype(np.float64)
    wanted = np.arange(BINS + 1) * _width(seen)
    filled: np.ndarray = np.diff(np.interp(wanted, edges, running))
    filled[-1] += running[-1] - filled.sum()
    return filled


def _rounded(values: np.ndarray, end: float) -> np.ndarray:
    step = end / LEVELS
    return np.round(values / step) * step


def _spread(inside: np.ndarray, levels: int) -> np.ndarray:
    """Merge bins into levels, and give each level's count back to its bins that are not empty."""
    starts = -(-np.arange(levels) * len(inside) // levels)  # bin k belongs to level 128 k / length
    sums = np.add.reduceat(inside, starts)
    full = np.add.reduceat((inside > 0).astype(np.float64), starts)
    each = np.divide(sums, full, out=np.zeros(levels), where=full > 0)
    lengths = np.diff(np.concatenate([starts, [len(inside)]]))
    return np.where(inside > 0, np.repeat(each, lengths), 0.0)


def _divergence(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence of two distributions, not normalized before."""
    p, q = reference / reference.sum(), candidate / candidate.sum()
    held = p > 0
    missing = held & (q == 0)
    if missing.any():  # what was cut off fell into a bin that was empty
        q = np.where(missing, 1e-9, q)
    return float((p[held] * np.log(p[held] / q[held])).sum())
