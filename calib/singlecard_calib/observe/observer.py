"""What is kept of one tensor while a model runs on calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from singlecard_calib.observe.histogram import Histogram

#: Weight of a new batch in the moving average of largest magnitudes, as `torch.ao` has it.
MOMENTUM = 0.01


@dataclass
class Observer:
    """Statistics of one tensor over all batches, in bounded memory.

    Attributes:
        batches: how many tensors were seen.
        largest: largest magnitude of all.
        average: moving average of each batch's largest magnitude.
        histogram: of magnitudes.
    """

    batches: int = 0
    largest: float = 0.0
    average: float = 0.0
    histogram: Histogram = field(default_factory=Histogram)

    def add(self, values: torch.Tensor) -> None:
        """See one batch.

        Raises:
            ValueError: an element is NaN or infinite, or the type is no floating-point one.
        """
        if not values.is_floating_point():
            raise ValueError(f"only floating-point tensors are calibrated, got {values.dtype}")
        self.histogram.add(values)
        if not values.numel():
            return
        largest = float(values.detach().abs().max())
        self.largest = max(self.largest, largest)
        if self.batches:
            self.average += MOMENTUM * (largest - self.average)
        else:
            self.average = largest
        self.batches += 1

    def merge(self, other: Observer) -> None:
        """Take in what another process saw of the same tensor.

        All but the moving average comes out as if one process had seen everything; the average is
        that of both, weighted by their batches, for it depends on an order that there is not.
        """
        self.histogram.merge(other.histogram)
        self.largest = max(self.largest, other.largest)
        batches = self.batches + other.batches
        if batches:
            own, theirs = self.average * self.batches, other.average * other.batches
            self.average = (own + theirs) / batches
        self.batches = batches

    def to_dict(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "largest": self.largest,
            "average": self.average,
            "histogram": self.histogram.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Observer:
        """Return what `to_dict` described.

        Raises:
            ValueError: a value is missing or makes no sense.
        """
        try:
            histogram = Histogram.from_dict(values["histogram"])
            numbers = float(values["largest"]), float(values["average"])
            batches = int(values["batches"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an observer: {error}") from error
        if batches < 0 or min(numbers) < 0 or numbers[0] > max(histogram.limit, 0.0):
            raise ValueError("not an observer: its numbers contradict each other")
        return cls(batches, *numbers, histogram)
