"""Where an answer goes: a pipe that is closed, a disk that is full, nowhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m singlecard cache list --cache-dir "{folder}"'
    script = f"set -o pipefail; {line.format(command)}"
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("form", ["{0} | true", "{0} --json | true", "{0} | head -0"])
def test_a_reader_that_has_read_enough(tmp_path: Path, form: str) -> None:
    """``singlecard cache list | head`` would end in a traceback, and in the status of a no."""
    done = shell(form, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{0} > /dev/full", "No space left on device"),
        ("{0} --json > /dev/full", "No space left on device"),
        ("{0} >&-", "Bad file descriptor"),
    ],
)
def test_an_answer_that_cannot_be_written(tmp_path: Path, form: str, words: str) -> None:
    """A script must not take half an answer for a whole one."""
    done = shell(form, tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"singlecard: the answer cannot be written: {words}\n"
