"""The fault campaign that the documentation quotes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "cache_faults.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "backend"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_small_campaign_finds_nothing_wrong(tmp_path: Path) -> None:
    """Who changes the cache must be able to see in seconds whether it still bears faults."""
    small = ("--processes", 4, "--engines", 6, "--rounds", 1, "--full-disks", 4, "--builders", 0)
    done = run("--kills", 10, "--corruptions", 14, *small, "--folder", tmp_path, "--seed", 7)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**Nothing went wrong.**" in done.stdout and "| kills | 10 |" in done.stdout
    assert "| **all** | 14 | 14 | 14 | 14 | 0 |" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_campaign_with_real_builds_finds_nothing_wrong() -> None:
    """What holds for random bytes must hold for TensorRT's plans."""
    done = run("--kills", 20, "--corruptions", 20, "--builders", 10)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kept_figures_are_of_a_full_run_without_faults() -> None:
    """The documentation quotes them."""
    kept = json.loads((ROOT / "benchmarks" / "results" / "cache_faults.json").read_text())
    assert kept["faults"] == []
    assert kept["kills"]["kills"] >= 200 and kept["corruptions"]["total"]["done"] >= 200
    assert (kept["race"]["processes"], kept["race"]["engines"]) == (8, 20)
    assert kept["race"]["builds"] == 20 and kept["race"]["built while being built"] == 0
