"""singlecard: the torch.compile backend for one GPU.

``torch.compile(model, backend="singlecard")`` lowers a model to TensorRT engines; `verify` proves
its answers without a GPU, and `explain` tells what the engines will do. `calibrate` makes the table
that INT8 and FP8 need.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from singlecard.artifact.exporting import ExportReport, export
    from singlecard.artifact.loading import Loaded, load
    from singlecard.background import wait_for_builds
    from singlecard.errors import (
        ArtifactError,
        BuildError,
        CacheError,
        CalibrationError,
        CaptureError,
        EvaluationError,
        FlavourError,
        LoweringError,
        ModelError,
        OptionError,
        RewriteError,
        RuntimeFailure,
        SinglecardError,
        TargetError,
    )
    from singlecard.observe import Counters, counters, set_logs
    from singlecard.options import Options
    from singlecard.precision.table import CalibrationTable
    from singlecard.report.explain import Explanation, explain
    from singlecard.report.memory_plan import plan_memory
    from singlecard.report.memory_rows import MemoryPlan
    from singlecard.report.verify import VerifyReport, verify
    from singlecard.runtime.offload import offload_weights, restore_weights
    from singlecard.warning import SinglecardWarning
    from singlecard_calib.calibrate import calibrate, calibrating
    from singlecard_calib.merge import merge_tables
    from singlecard_calib.pruning import prune
    from singlecard_calib.search import search_precision
    from singlecard_calib.weight_rounding import round_weights

_HOMES = {
    "CalibrationTable": "singlecard.precision.table",
    "Counters": "singlecard.observe",
    "Explanation": "singlecard.report.explain",
    "ExportReport": "singlecard.artifact.exporting",
    "Loaded": "singlecard.artifact.loading",
    "MemoryPlan": "singlecard.report.memory_rows",
    "Options": "singlecard.options",
    "SinglecardWarning": "singlecard.warning",
    "VerifyReport": "singlecard.report.verify",
    "calibrate": "singlecard_calib.calibrate",
    "calibrating": "singlecard_calib.calibrate",
    "counters": "singlecard.observe",
    "explain": "singlecard.report.explain",
    "export": "singlecard.artifact.exporting",
    "load": "singlecard.artifact.loading",
    "merge_tables": "singlecard_calib.merge",
    "offload_weights": "singlecard.runtime.offload",
    "plan_memory": "singlecard.report.memory_plan",
    "prune": "singlecard_calib.pruning",
    "restore_weights": "singlecard.runtime.offload",
    "round_weights": "singlecard_calib.weight_rounding",
    "search_precision": "singlecard_calib.search",
    "set_logs": "singlecard.observe",
    "verify": "singlecard.report.verify",
    "wait_for_builds": "singlecard.background",
    **dict.fromkeys(
        (
            "ArtifactError",
            "BuildError",
            "CacheError",
            "CalibrationError",
            "CaptureError",
            "EvaluationError",
            "FlavourError",
            "LoweringError",
            "ModelError",
            "OptionError",
            "RewriteError",
            "RuntimeFailure",
            "SinglecardError",
            "TargetError",
        ),
        "singlecard.errors",
    ),
}

__all__ = [
    "ArtifactError",
    "BuildError",
    "CacheError",
    "CalibrationError",
    "CalibrationTable",
    "CaptureError",
    "Counters",
    "EvaluationError",
    "Explanation",
    "ExportReport",
    "FlavourError",
    "Loaded",
    "LoweringError",
    "MemoryPlan",
    "ModelError",
    "OptionError",
    "Options",
    "RewriteError",
    "RuntimeFailure",
    "SinglecardError",
    "SinglecardWarning",
    "TargetError",
    "VerifyReport",
    "calibrate",
    "calibrating",
    "counters",
    "explain",
    "export",
    "load",
    "merge_tables",
    "offload_weights",
    "plan_memory",
    "prune",
    "restore_weights",
    "round_weights",
    "search_precision",
    "set_logs",
    "verify",
    "wait_for_builds",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for on first use: ``import singlecard`` itself loads next to nothing."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'singlecard' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List what is public, which completion in a notebook or an editor's console shows."""
    return [*__all__, "__version__"]


if os.environ.get("SINGLECARD_LOGS"):
    from singlecard.observe.topics import read_environment

    read_environment()
