"""Calibration for singlecard: what tensors hold while a model runs, and the thresholds from it.

>>> import torch
>>> from singlecard_calib import METHODS, Observer
>>> seen = Observer()
>>> seen.add(torch.tensor([0.5, -2.0, 1.0]))
>>> METHODS["min-max"](seen)
2.0

Nothing in `singlecard` reads these thresholds yet: INT8 is not among its precisions.
"""

from __future__ import annotations

from singlecard_calib.methods import METHODS
from singlecard_calib.observe import Histogram, Observer

__all__ = ["METHODS", "Histogram", "Observer"]
