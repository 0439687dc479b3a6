"""Bad input: one line that names the thing and the way out, status 2, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import singlecard.commands.build

Model = Callable[[str], str]

#: Arguments after ``build MODEL``, and what the message must name.
ARGUMENTS = {
    "unknown argument": (["--precison", "fp16"], ["--precison", "did you mean --precision?"]),
    "unknown shape": (["--shapes", "inptu=1:2:4"], ["'inptu'", "did you mean 'input'?"]),
    "unknown precision": (["--precision", "fp61"], ["'fp61'", "'fp16'", "bf16"]),
    "unknown target": (["--targets", "sm85"], ["'sm85'", "sm86", "portable"]),
    "type that a target lacks": (
        ["--precision", "bf16", "--targets", "sm75,sm89"],
        ["bf16", "sm75", "sm80"],
    ),
    "no number": (["--min-block-size", "two"], ["--min-block-size", "'two'", "--help"]),
    "number out of range": (["--min-block-size", "0"], ["min_block_size=0", ">= 1"]),
    "no size": (["--workspace-bytes", "1furlong"], ["'1furlong'", "500MB"]),
    "missing value": (["--targets"], ["--targets", "--help"]),
}

#: Functions of ``models_for_cli`` that lead to no model, and what the message must name.
FUNCTIONS = {
    "smal": ["has no function smal", "did you mean small?"],
    "zzz": ["has no function zzz", "it has", "small"],
    "VALUE": ["VALUE", "is an int", "(module, args)"],
    "wants_argument": ["wants_argument", "(size)", "takes none"],
    "only_module": ["a Linear", "(module, args)"],
    "bare_tensor": ["a Tensor as args", "(module, (x,))"],
    "four_things": ["a tuple of 4", "(module, args, kwargs)"],
    "no_module": ["an int as the module"],
    "list_as_kwargs": ["a list of 1 as kwargs", "dict"],
    "failing": ["RuntimeError", "models_for_cli.py:", "weights are missing"],
    "leaving": ["SystemExit", "models_for_cli.py:"],
    "raising": ["ValueError", "models_for_cli.py:", "this model never answers", "plain PyTorch"],
    "wrong_shape": ["RuntimeError", "3x3 and 2x2", "example arguments"],
}


def check_refused(done: Any, *words: str) -> None:
    assert done.status == 2, done.err
    assert done.out == ""
    assert done.err.startswith("singlecard: ") and done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments(command: Any, model: Model, tmp_path: Path, case: str) -> None:
    """A slip in an argument should cost seconds, and say how it is written."""
    arguments, words = ARGUMENTS[case]
    cache = tmp_path / "cache"
    done = command("build", model("small"), "--cache-dir", cache, *arguments)
    check_refused(done, *words)
    assert not cache.exists()


@pytest.mark.parametrize(("given", "words"), [("explian", "explain"), ("veryfy", "verify")])
def test_a_mistyped_verb(command: Any, given: str, words: str) -> None:
    """All options get their nearest; so should the first word."""
    check_refused(command(given, "model.py:f"), f"unknown verb {given!r}", f"mean {words!r}?")


def test_a_warning_is_one_line(command: Any, model: Model, tmp_path: Path) -> None:
    """A name that nothing has is part of what went on, and no traceback of Python's."""
    given = ("--cache-dir", tmp_path, "--exclude-modules", "encoder.7")
    done = command("verify", model("small"), *given)
    assert done.status == 0
    assert done.err.startswith("singlecard: option exclude_modules names 'encoder.7'")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_that_lead_to_no_model(
    command: Any, model: Model, tmp_path: Path, function: str
) -> None:
    """The message must tell the user's mistake from ours, and lead to the line."""
    cache = tmp_path / "cache"
    done = command("build", model(function), "--cache-dir", cache)
    check_refused(done, *FUNCTIONS[function])
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nofile.py:small", ["no file nofile.py", "name an existing file"]),
        ("modle.py:small", ["no file modle.py", "did you mean model.py?"]),
        ("model.py", ["'model.py' names no function", "path.py:function"]),
        ("broken.py:small", ["SyntaxError at broken.py:2"]),
        ("lacking.py:small", ["ModuleNotFoundError at lacking.py:1", "Install what it needs"]),
        ("no.such.module:small", ["no module no", "path.py:function"]),
        ("lacking:small", ["ModuleNotFoundError at lacking.py:1", "not_installed"]),
        ("none.pt2", ["no file none.pt2", "torch.export.save"]),
        ("text.pt2", ["text.pt2 is damaged", "zip", "torch.export.save"]),
        ("cut.pt2", ["cut.pt2 is damaged", "torch.export.save"]),
        ("other.pt2", ["other.pt2 holds no program", "torch.export.save"]),
    ],
)
def test_model_specs(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: list[str]
) -> None:
    """MODEL is what users write by hand most often."""
    fill_with_bad_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    check_refused(command("build", spec, "--cache-dir", "cache"), *words)
    assert not Path("cache").exists()


def fill_with_bad_models(folder: Path) -> None:
    import torch

    (folder / "model.py").write_text("def small(): ...\n")
    (folder / "broken.py").write_text("import torch\ndef small(:\n")
    (folder / "lacking.py").write_text("import not_installed_anywhere\n")
    (folder / "text.pt2").write_text("this is no archive")
    torch.save({"weights": torch.ones(3)}, folder / "other.pt2")
    data = (folder / "other.pt2").read_bytes()
    (folder / "cut.pt2").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("verb", ["build", "verify", "explain"])
@pytest.mark.parametrize("place", ["file", "file/folder"])
def test_a_cache_folder_that_cannot_be_written(
    command: Any, model: Model, tmp_path: Path, verb: str, place: str
) -> None:
    """Found before the build, which may take minutes."""
    (tmp_path / "file").write_text("kept")
    done = command(verb, model("small"), "--cache-dir", tmp_path / place)
    check_refused(done, str(tmp_path / place), "cache_dir")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "arguments", [[], ["bild", "m.py:f"], ["build"], ["cache"], ["cache", "ls"]]
)
def test_commands_that_are_not_there(command: Any, arguments: list[str]) -> None:
    """The verbs that exist are named, or where to read of them."""
    check_refused(command(*arguments), "--help")


def test_json_tells_errors_too(command: Any, model: Model) -> None:
    """A program reads standard output whatever happened."""
    done = command("verify", model("small"), "--targets", "sm1", "--json")
    assert done.status == 2
    assert done.document["error"]["type"] == "TargetError"
    assert "'sm1'" in done.document["error"]["message"] and "'sm1'" in done.err


def test_debug_shows_the_traceback(command: Any, model: Model, tmp_path: Path) -> None:
    """One line is too little for who has to find the cause."""
    done = command("build", model("failing"), "--cache-dir", tmp_path, "--debug")
    assert done.status == 2
    assert "Traceback" in done.err and "weights are missing" in done.err


def test_an_error_of_our_own_is_called_that(
    command: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users should not look for a mistake in their model that is not there."""

    def fail(given: object) -> None:
        raise KeyError("something internal")

    monkeypatch.setattr(singlecard.commands.build, "options_from", fail)
    done = command("build", model("small"))
    assert done.status == 3
    assert "KeyError" in done.err and "report" in done.err and "Traceback" not in done.err
