"""From what was seen to the scales of a table: thresholds, divisors, corrections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from singlecard.capture.quantized import codes_of
from singlecard.precision.points import Point
from singlecard.precision.weights import BLOCKS, by_blocks, by_gains
from singlecard_calib.methods import METHODS, percentile
from singlecard_calib.migration import migrate, with_headroom
from singlecard_calib.observations import Observations, Seen
from singlecard_calib.observe import Observer

#: Chooses a threshold from what was seen.
Method = Callable[[Observer], float]

#: How range goes from a tensor to its weights: by SmoothQuant's formula with this strength, or by
#: what is found to be best.
Smoothing = float | Literal["search"]


def method_from(name: str, share: float | None) -> Method:
    """Return a method by its name; ``share``, in percent, is for the percentile alone."""
    if name == "percentile" and share is not None:
        return lambda seen: percentile(seen, share)
    return METHODS[name]


def rounded(values: torch.Tensor, threshold: float) -> torch.Tensor:
    """Return values as INT8 with this threshold holds them."""
    scale = torch.tensor(threshold / 127)
    return codes_of(values, scale, "int8").float() * scale


def divisors(
    channels: torch.Tensor, weights: Sequence[torch.Tensor], strength: float
) -> torch.Tensor:
    """Return what each channel is divided by, and its weights multiplied with.

    Source: Xiao et al., "SmoothQuant: accurate and efficient post-training quantization for large
    language models", 2023: largest activation ** strength / largest weight ** (1 - strength).

    Args:
        channels: [channels], the largest magnitude of each.
        weights: of the linear layers that read the tensor, [out, channels] each.
        strength: 0 to 1.
    """
    column = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    found = channels.clamp(min=1e-5) ** strength / column.clamp(min=1e-5) ** (1 - strength)
    found = torch.where(channels > 0, found, torch.ones_like(found))
    return (found / found.log().mean().exp()).clamp(1e-4, 1e4)


def smoothed(
    seen: Seen, readers: Sequence[Point], method: Method, smoothing: Smoothing, precision: str
) -> tuple[torch.Tensor | None, float]:
    """Choose a divisor by the error of the layers' outputs on samples, and its threshold.

    Args:
        seen: the tensor.
        readers: linear layers that read it; nothing else does.
        method: chooses thresholds.
        smoothing: a strength, or ``"search"`` for the divisor of `migrate` or none at all.
        precision: ``"int8"``, where values are rounded too, ``"int8-weight"`` or ``"int4-weight"``.

    Returns:
        The divisor, None where none is best, and the threshold of the quotient.
    """
    sample, channels = seen.sample, seen.channels
    own = method(seen.observer)
    if sample is None or channels is None:
        return None, own
    weights = [
        point.weight.detach().to("cpu", torch.float32, copy=point.weight.is_inference())
        for point in readers
        if point.weight is not None
    ]
    if not weights:
        return None, own
    expected = [F.linear(sample, item) for item in weights]
    best: tuple[float, torch.Tensor | None, float] | None = None
    tried: list[torch.Tensor | None]
    moments = sample.square().mean(0)
    reach = with_headroom(moments, channels, seen.elements)
    if smoothing == "search":
        block = block_of(weights[0], precision)
        tried = [None, migrate(moments, reach, weights, precision, block)]
    else:
        tried = [divisors(reach, weights, smoothing)]
    for divisor in tried:
        threshold = own
        if divisor is not None:
            threshold = method(_quotient(sample, reach, divisor))
        error = _error(sample, weights, expected, divisor, threshold, precision)
        if best is None or error < best[0] * 0.98:  # not for nothing
            best = error, divisor, threshold
    assert best is not None
    return best[1], best[2]


def block_of(weight: torch.Tensor, precision: str) -> int | None:
    """Return how many columns of a weight share a scale; None where a whole row does."""
    if precision != "int4-weight":
        return None
    return next((size for size in BLOCKS if weight.shape[1] % size == 0), None)


def _quotient(sample: torch.Tensor, reach: torch.Tensor, divisor: torch.Tensor) -> Observer:
    """Return what would be seen of a tensor over its divisor, with the range of each channel."""
    seen = Observer()
    seen.add(sample / divisor)
    seen.largest = max(seen.largest, float((reach / divisor).max()))
    seen.histogram.widen(seen.largest)
    return seen


def _error(
    sample: torch.Tensor,
    weights: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    divisor: torch.Tensor | None,
    threshold: float,
    precision: str,
) -> float:
    """Return the squared error of quantized layers, relative to their outputs."""
    values = sample if divisor is None else sample / divisor
    if precision == "int8":
        values = rounded(values, threshold)
    total = 0.0
    for weight, right in zip(weights, expected, strict=True):
        scaled = weight if divisor is None else weight * divisor
        if precision != "int4-weight":
            held = by_gains(scaled, "int8").value()
        else:
            block = block_of(scaled, precision)
            held = scaled if block is None else by_blocks(scaled, block).value()
        norm = float(right.square().sum()) or 1.0
        total += float((F.linear(values, held) - right).square().sum()) / norm
    return total


def readers_to_smooth(seen: Observations, tensor: str) -> list[Point]:
    """Return the linear layers that read a tensor, if nothing else does that could be quantized."""
    if tensor in seen.shared:
        return []
    readers = [
        point
        for point in seen.points.values()
        if point.op != "residual" and any(name == tensor for name, _ in point.operands)
    ]
    return readers if all(point.op == "linear" for point in readers) else []
