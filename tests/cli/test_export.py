"""``singlecard export``: the file that a release is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from singlecard.artifact.loading import load
from tests.cli.conftest import Command
from tests.cli.models_for_cli import small


def test_what_it_writes_runs(command: Command, model: Callable[[str], str], tmp_path: Path) -> None:
    """The command and the library must write the same thing."""
    file = tmp_path / "small.singlecard"
    done = command("export", model("small"), file, "--targets", "sm89", "--fallback", "--json")
    assert done.status == 0, done.err
    assert done.document["path"] == str(file)
    assert done.document["bytes"] == file.stat().st_size
    assert len(done.document["engines"]) == 1 and done.document["coverage"] == 1
    module, args = small()
    torch.testing.assert_close(load(file, device="cpu")(*args), module(*args))


def test_table(command: Command, model: Callable[[str], str], tmp_path: Path) -> None:
    """What a person sees: the file, what is in it, what stays in PyTorch."""
    file = tmp_path / "partly.singlecard"
    done = command("export", model("partly_lowered"), file, "--min-block-size", 1)
    assert done.status == 0
    for words in ("partly.singlecard", "not signed", "special_bessel_j0", "float32 [4]"):
        assert words.replace(" ", "") in "".join(done.out.split())  # a long path is folded


def test_shapes(command: Command, model: Callable[[str], str], tmp_path: Path) -> None:
    """`--shapes` means what it means to `build`; a batch of one included."""
    file = tmp_path / "small.singlecard"
    arguments = ("--shapes", "0=1:4:16", "--fallback", "--json")
    done = command("export", model("small"), file, *arguments)
    assert done.status == 0, done.err
    assert "no input" not in done.err
    loaded = load(file, device="cpu")
    module, _ = small()
    for rows in (1, 16):
        x = torch.rand(rows, 8)
        torch.testing.assert_close(loaded(x), module(x))


def test_nothing_lowered(command: Command, model: Callable[[str], str], tmp_path: Path) -> None:
    """A release pipeline must notice that there is no engine in it."""
    assert command("export", model("not_lowered"), tmp_path / "a").status == 1


@pytest.mark.parametrize(
    ("function", "out", "words"),
    [
        ("small", "nothing/here", "there is no folder"),
        ("raising", "a", "this model never answers"),
    ],
)
def test_bad_input(
    command: Command,
    model: Callable[[str], str],
    tmp_path: Path,
    function: str,
    out: str,
    words: str,
) -> None:
    """One line that says what to do, and no traceback."""
    done = command("export", model(function), tmp_path / out)
    assert done.status == 2 and words in done.err and "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


def test_signed(command: Command, model: Callable[[str], str], tmp_path: Path) -> None:
    """A key that is read and not used would be found out by the attacker."""
    key, file = tmp_path / "key", tmp_path / "a"
    key.write_text("5" * 64)
    key.chmod(0o600)
    done = command("export", model("small"), file, "--signing-key", key, "--fallback", "--json")
    assert done.document["signed"] is True
    module, args = small()
    loaded = load(file, device="cpu", signing_key=key)
    torch.testing.assert_close(loaded(*args), module(*args))
