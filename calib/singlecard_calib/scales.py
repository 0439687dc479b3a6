"""From everything that was seen of a model to its calibration table."""

from __future__ import annotations

import torch

from singlecard.errors import CalibrationError
from singlecard.precision.table import CalibrationTable, TensorScale
from singlecard.warning import warn_once
from singlecard_calib.choose import readers_to_smooth, smoothed
from singlecard_calib.observations import Observations, Seen
from singlecard_calib.settings import Settings


def table_of(seen: Observations, settings: Settings) -> CalibrationTable:
    """Choose scales from what was seen.

    Raises:
        CalibrationError: the model was not called, or nothing in it could be quantized.
    """
    if not seen.calls:
        raise CalibrationError(
            "there is no calibration data: the model was not called once. Call the module itself, "
            "not its forward, nor what torch.compile made of it before"
        )
    if not seen.points:
        raise CalibrationError(
            "nothing in the model can be quantized: it has no linear layer, convolution, product "
            "or attention that the backend captures"
        )
    if seen.calls == 1:
        warn_once(
            "a calibration with one call knows little of what a model meets: give some tens of "
            "calls with data as in use"
        )
    with torch.inference_mode(False):
        tensors = {
            name: _scale_of(name, item, seen, settings)
            for name, item in seen.tensors.items()
            if item.observer.largest > 0.0  # all zeros: the op stays, and placement says so
        }
    return CalibrationTable(
        settings.method,
        seen.calls,
        tuple(seen.graphs),
        tensors,
        keep_fp32=tuple(seen.ranges.beyond()),
        percentile=settings.percentile if settings.method == "percentile" else None,
    )


def _scale_of(name: str, item: Seen, seen: Observations, settings: Settings) -> TensorScale:
    readers = readers_to_smooth(seen, name)
    divisor, threshold = None, settings.threshold(item.observer)
    weights_divisor = None
    if readers and settings.smoothing is not None:
        divisor, threshold = smoothed(item, readers, settings.threshold, settings.smoothing, "int8")
    if readers and settings.weights:
        kind = f"{settings.weights}-weight"
        weights_divisor, _ = smoothed(item, readers, settings.threshold, "search", kind)
    return TensorScale(
        float(threshold),
        item.observer.largest,
        _plain(divisor),
        _plain(weights_divisor),
        _plain(item.means if settings.bias_correction else None),
        item.observer.to_dict() if settings.keep_statistics else None,
    )


def _plain(values: torch.Tensor | None) -> tuple[float, ...]:
    """Return numbers with the digits that a scale needs."""
    return () if values is None else tuple(float(f"{value:.6g}") for value in values.tolist())
