"""What is seen of a model's tensors while it runs."""

from __future__ import annotations

from singlecard_calib.observe.histogram import BINS, Histogram
from singlecard_calib.observe.observer import MOMENTUM, Observer

__all__ = ["BINS", "MOMENTUM", "Histogram", "Observer"]
