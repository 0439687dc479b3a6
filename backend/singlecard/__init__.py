"""singlecard: the torch.compile backend for one GPU.

``torch.compile(model, backend="singlecard")`` lowers a model to TensorRT engines; `verify` proves
its answers without a GPU, and `explain` tells what the engines will do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from singlecard.errors import (
        BuildError,
        CacheError,
        CaptureError,
        EvaluationError,
        FlavourError,
        LoweringError,
        ModelError,
        OptionError,
        RuntimeFailure,
        SinglecardError,
        TargetError,
    )
    from singlecard.options import Options
    from singlecard.report.explain import Explanation, explain
    from singlecard.report.verify import VerifyReport, verify
    from singlecard.warning import SinglecardWarning

_HOMES = {
    "Explanation": "singlecard.report.explain",
    "Options": "singlecard.options",
    "SinglecardWarning": "singlecard.warning",
    "VerifyReport": "singlecard.report.verify",
    "explain": "singlecard.report.explain",
    "verify": "singlecard.report.verify",
    **dict.fromkeys(
        (
            "BuildError",
            "CacheError",
            "CaptureError",
            "EvaluationError",
            "FlavourError",
            "LoweringError",
            "ModelError",
            "OptionError",
            "RuntimeFailure",
            "SinglecardError",
            "TargetError",
        ),
        "singlecard.errors",
    ),
}

__all__ = [
    "BuildError",
    "CacheError",
    "CaptureError",
    "EvaluationError",
    "Explanation",
    "FlavourError",
    "LoweringError",
    "ModelError",
    "OptionError",
    "Options",
    "RuntimeFailure",
    "SinglecardError",
    "SinglecardWarning",
    "TargetError",
    "VerifyReport",
    "explain",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use: ``import singlecard`` itself loads next to nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'singlecard' has no attribute {name!r}")
