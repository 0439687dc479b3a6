"""Calibration for singlecard: what tensors hold while a model runs, and the scales from it.

What a user calls is in `singlecard`: `calibrate`, `calibrating`, `merge_tables`, `prune`,
`round_weights`, `search_precision`. Here are their parts, for those who count themselves:

>>> import torch
>>> from singlecard_calib import METHODS, Observer
>>> seen = Observer()
>>> seen.add(torch.tensor([0.5, -2.0, 1.0]))
>>> METHODS["min-max"](seen)
2.0
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from singlecard_calib.methods import METHODS
    from singlecard_calib.observe import Histogram, Observer
    from singlecard_calib.pt2e import SinglecardQuantizer

_HOMES = {
    "METHODS": "singlecard_calib.methods",
    "Histogram": "singlecard_calib.observe",
    "Observer": "singlecard_calib.observe",
    "SinglecardQuantizer": "singlecard_calib.pt2e",
}

__all__ = ["METHODS", "Histogram", "Observer", "SinglecardQuantizer"]


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use: the quantizer needs torchao, which is an extra."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'singlecard_calib' has no attribute {name!r}")
