"""Progress: minutes of silence look like a hang, and bars in a log file are noise."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.commands.progress import progress_bars


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_phases_appear_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's own phases say that it works, and at what."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress_bars("model.py:f") as progress:
        assert progress is not None
        progress("Building engine", 0, 6)
        progress("Building engine", 3, 6)
        progress("Building engine", 6, 6)
        progress("Building engine", 6, 6)
        progress("Optimizing", 0, 0)
    assert "model.py:f" in terminal.getvalue()


def test_nothing_is_written_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CI log would fill with control characters."""
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress_bars("model.py:f") as progress:
        assert progress is None
    assert file.getvalue() == ""


def test_a_build_drives_them(
    command: Any,
    model: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bars that no builder moves would be worse than none."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert command("build", model("small"), "--cache-dir", tmp_path).status == 0
    assert "small" in terminal.getvalue()
