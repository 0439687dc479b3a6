"""Where an error comes from: users look for their own line, not for PyTorch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from singlecard.report.origin import first_line, place_of


def raised_by(source: str, path: Path) -> BaseException:
    path.write_text(source)
    try:
        exec(compile(source, str(path), "exec"), {"torch": torch})
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_it_is_the_users_line_that_called_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost line stands in PyTorch, where the user can change nothing."""
    monkeypatch.chdir(tmp_path)
    source = "x = torch.ones(3, 3)\ntorch.nn.Linear(2, 2)(x)\n"
    assert place_of(raised_by(source, tmp_path / "mine.py")) == "mine.py:2"


def test_a_syntax_error_is_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of one ends in the import."""
    monkeypatch.chdir(tmp_path)
    error = raised_by("x = 1\ndef f(:\n", tmp_path / "mine.py")
    assert place_of(error) == "mine.py:2"
    assert "line 2" not in first_line(error)


def test_without_a_line_of_the_users_it_is_the_innermost() -> None:
    """An installed model has no line in the user's folder, and some line is better than none."""
    try:
        torch.nn.Linear(2, 2).load_state_dict({"weight": 3})
    except RuntimeError as error:
        while error.__traceback__ is not None and error.__traceback__.tb_next is not None:
            error.__traceback__ = error.__traceback__.tb_next
        assert place_of(error).rpartition(":")[0].endswith("module.py")


def test_a_message_is_cut_to_its_first_line() -> None:
    """A page of advice is not one clear line."""
    assert first_line(ValueError("no good.\nmore")) == "no good"
    assert first_line(ValueError()) == "(no message)"
