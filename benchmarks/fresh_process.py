"""Measure in a process of its own, so that nothing is warm that a user would find cold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
        # Several threads of torch's only wait for each other when the machine does other work too.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
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


class Clock:
    """Started when it is made; tells wall-clock seconds and this thread's CPU seconds since then.

    CPU seconds do not count the time in which other programs had the processor.
    """

    def __init__(self) -> None:
        self._started = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def read(self) -> tuple[float, float]:
        now, cpu = self._now()
        return now - self._started[0], cpu - self._started[1]
