"""Measure in a process of its own, so that nothing is warm that a user would find cold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

BACKEND = Path(__file__).parents[1] / "backend"


def run_fresh(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script of this folder; return the JSON object that is the last line it prints.

    Raises:
        RuntimeError: the script failed, with the end of what it said.
    """
    paths = [str(BACKEND), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / script), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def median_of(runs: list[dict[str, Any]], key: str) -> float:
    """Return the median of one number over runs."""
    return float(median(run[key] for run in runs))
