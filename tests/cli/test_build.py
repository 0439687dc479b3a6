"""``singlecard build``: a machine without a GPU fills the cache for one that has a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from singlecard.backend import compile_graph
from singlecard.engine.cache import Cache
from singlecard.report.model import load_model

Model = Callable[[str], str]


def test_it_says_what_it_built_and_where(command: Any, model: Model, tmp_path: Path) -> None:
    """Without digest, targets and path nobody can tell what to copy to the card's machine."""
    done = command(
        "build", model("small"), "--targets", "sm89,sm86", "--precision", "fp16", "--cache-dir",
        tmp_path, "--json",
    )  # fmt: skip
    assert done.status == 0
    (engine,) = done.document["engines"]
    assert engine["built"] and engine["seconds"] > 0 and engine["kernels"] >= 1
    plan = Path(engine["plan"])
    assert plan.is_relative_to(tmp_path) and plan.stat().st_size == engine["engine_bytes"]
    assert done.document["targets"] == "sm86,sm89"
    (entry,) = Cache(tmp_path).entries()
    assert entry.digest == engine["digest"] and entry.manifest["key"]["targets"] == "sm86,sm89"


def test_a_second_build_finds_the_first(command: Any, model: Model, tmp_path: Path) -> None:
    """Otherwise every CI run would build everything again."""
    first = command("build", model("small"), "--cache-dir", tmp_path, "--json").document
    second = command("build", model("small"), "--cache-dir", tmp_path, "--json").document
    assert [engine["built"] for engine in second["engines"]] == [False]
    assert [e["digest"] for e in second["engines"]] == [e["digest"] for e in first["engines"]]


def test_a_new_process_builds_nothing(command: Any, model: Model, tmp_path: Path) -> None:
    """A key that holds something of the process would make every start a first one."""
    command("build", model("small"), "--cache-dir", tmp_path)
    arguments = ["build", model("small"), "--cache-dir", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "singlecard", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [engine["built"] for engine in json.loads(done.stdout)["engines"]] == [False]


def test_torch_compile_finds_what_was_built(command: Any, model: Model, tmp_path: Path) -> None:
    """The run on the card would otherwise build again, and the offline build be for nothing."""
    command("build", model("small"), "--targets", "sm89", "--cache-dir", tmp_path)
    (built,) = Cache(tmp_path).entries()
    loaded = load_model(model("small"))
    options = {"targets": ("sm89",), "cache_dir": tmp_path, "execution": "reference"}
    with torch.inference_mode():
        torch.compile(loaded.module, backend=compile_graph, options=options)(*loaded.args)
    assert [entry.digest for entry in Cache(tmp_path).entries()] == [built.digest]


def test_the_console_script_reaches_the_same_verbs(tmp_path: Path) -> None:
    """The README's commands start with ``singlecard``, not with ``python -m``."""
    script = Path(sys.executable).with_name("singlecard")
    command = [script] if script.exists() else [sys.executable, "-m", "singlecard"]
    done = subprocess.run(
        [*command, "cache", "list", "--json", "--cache-dir", tmp_path / "none"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engines"] == []


def test_keyword_arguments_reach_the_model(command: Any, model: Model, tmp_path: Path) -> None:
    """transformers' models take theirs by name."""
    done = command("build", model("with_kwargs"), "--cache-dir", tmp_path, "--json")
    assert done.document["coverage"] == 1.0


def test_a_pt2_file_leads_to_the_same_engine(command: Any, model: Model, tmp_path: Path) -> None:
    """Who deploys has the exported file, who develops the source: they must share one cache."""
    loaded = load_model(model("small"))
    file = tmp_path / "small.pt2"
    torch.export.save(torch.export.export(loaded.module, loaded.args), file)
    first = command("build", file, "--cache-dir", tmp_path / "cache", "--json").document
    again = command("build", model("small"), "--cache-dir", tmp_path / "cache", "--json").document
    assert [engine["built"] for engine in again["engines"]] == [False]
    assert again["engines"][0]["digest"] == first["engines"][0]["digest"]


def test_a_pt2_files_dynamic_batch_stays_dynamic(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """An engine for the example's batch alone would be built again for every other."""
    loaded = load_model(model("small"))
    shapes = ({0: torch.export.Dim("batch", min=2, max=16)},)
    program = torch.export.export(loaded.module, loaded.args, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "dynamic.pt2")
    command("build", tmp_path / "dynamic.pt2", "--cache-dir", tmp_path / "cache")
    (entry,) = Cache(tmp_path / "cache").entries()
    assert "((2, 8), (6, 8), (16, 8))" in entry.manifest["key"]["profiles"]


def test_an_op_left_out_is_told_once_with_its_line(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """A user looks for the line to change."""
    given = ("--cache-dir", tmp_path, "--json", "--min-block-size", 1)
    done = command("build", model("partly_lowered"), *given)
    assert done.status == 0 and done.document["engines"]
    ((op, reason, line),) = done.document["fallback"]
    assert "bessel_j0" in op and op in reason
    assert "models_for_cli.py" in line and "torch.special.bessel_j0" in line
    assert done.err == ""


def test_excluded_ops_and_modules_stay_out(command: Any, model: Model, tmp_path: Path) -> None:
    """What the Python API takes, the shell must take too."""
    for flag, value in (("--exclude-ops", "aten.relu"), ("--exclude-modules", "1")):
        given = ("--cache-dir", tmp_path, "--json", "--min-block-size", 1, flag, value)
        done = command("build", model("small"), *given)
        ((op, reason, _),) = done.document["fallback"]
        assert op == "aten.relu" and flag[2:].replace("-", "_") in reason


def test_no_engine_at_all_is_status_1(command: Any, model: Model, tmp_path: Path) -> None:
    """A deployment script must notice that there is nothing to deploy."""
    done = command("build", model("not_lowered"), "--cache-dir", tmp_path)
    assert done.status == 1 and "0% of 1" in done.out


def test_strict_refuses_what_stays_in_pytorch(command: Any, model: Model, tmp_path: Path) -> None:
    """``--strict`` is for those who want one engine or none."""
    done = command("build", model("partly_lowered"), "--strict", "--cache-dir", tmp_path)
    assert done.status == 2 and "bessel_j0" in done.err


def test_min_block_size_leaves_small_blocks_out(command: Any, model: Model, tmp_path: Path) -> None:
    """An engine for one op costs more than it saves."""
    done = command(
        "build", model("partly_lowered"), "--min-block-size", "5", "--cache-dir", tmp_path, "--json"
    )
    assert done.status == 1 and done.document["engines"] == []


def test_a_workspace_limit_is_part_of_what_is_built(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """A limit that were dropped on the way would be met on the card as an out-of-memory."""
    command("build", model("small"), "--workspace-bytes", "64MB", "--cache-dir", tmp_path)
    (entry,) = Cache(tmp_path).entries()
    assert entry.manifest["key"]["workspace_bytes"] == "64000000"


def test_what_the_model_prints_stays_out_of_the_answer(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """A program reads standard output as JSON."""
    done = command("build", model("talkative"), "--cache-dir", tmp_path, "--json")
    assert done.document["coverage"] == 1.0
    assert "loading the model" in done.err


def test_precisions_are_built_one_after_the_other(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """A team that ships FP32 and FP16 would call the command twice, and load the model twice."""
    given = ("--precision", "fp32,fp16", "--cache-dir", tmp_path)
    done = command("build", model("small"), *given, "--json")
    assert done.status == 0
    assert [built["precision"] for built in done.document["builds"]] == ["fp32", "fp16"]
    digests = [engine["digest"] for built in done.document["builds"] for engine in built["engines"]]
    assert len(set(digests)) == 2
    assert {entry.digest for entry in Cache(tmp_path).entries()} == set(digests)
    again = command("build", model("small"), *given)
    assert all(digest[:12] in again.out for digest in digests)
    assert command("build", model("not_lowered"), *given).status == 1


def test_a_calibration_table_goes_to_the_precisions_that_take_one(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """``--precision fp32,int8 --calibration`` would be refused for FP32's sake."""
    table = tmp_path / "table.json"
    command("calibrate", model("small"), "--out", table)
    given = ("--calibration", table, "--cache-dir", tmp_path / "cache")
    assert command("build", model("small"), "--precision", "fp32,int8", *given).status == 0
    refused = command("build", model("small"), "--precision", "fp32,bf16", *given)
    assert refused.status == 2 and "calibration" in refused.err


def test_torch_compile_finds_what_was_built_for_a_range(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """The card's machine would build again for its first batch, whatever its size."""
    given = ("--targets", "sm89", "--cache-dir", tmp_path, "--shapes")
    done = command("build", model("small"), *given, "input=1:8:32", "--json")
    (engine,) = done.document["engines"]
    assert "size of 1" in done.document["remarks"][0]
    one = command("build", model("small"), *given, "input=1", "--json").document
    (single,) = one["engines"]
    assert one["remarks"] == []

    module = load_model(model("small")).module
    options = {
        "targets": ("sm89",),
        "cache_dir": tmp_path,
        "execution": "reference",
        "profiles": {0: {0: (1, 8, 32)}},
    }
    compiled = torch.compile(module, backend=compile_graph, options=options)
    with torch.inference_mode():
        for batch in (3, 32, 1):
            x = torch.ones(batch, 8)
            torch._dynamo.maybe_mark_dynamic(x, 0)
            assert torch.allclose(compiled(x), module(x), atol=1e-5)
    found = {entry.digest for entry in Cache(tmp_path).entries()}
    assert found == {engine["digest"], single["digest"]}


def test_shapes_reach_a_pt2_file(command: Any, model: Model, tmp_path: Path) -> None:
    """The ranges of an export are as wide as the model; an engine is for what is served."""
    loaded = load_model(model("small"))
    shapes = ({0: torch.export.Dim("batch", min=2, max=16)},)
    program = torch.export.export(loaded.module, loaded.args, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "dynamic.pt2")
    given = ("build", tmp_path / "dynamic.pt2", "--cache-dir", tmp_path / "cache", "--shapes")
    assert command(*given, "input=2:4:8").status == 0
    (entry,) = Cache(tmp_path / "cache").entries()
    assert "((2, 8), (4, 8), (8, 8))" in entry.manifest["key"]["profiles"]
    refused = command(*given, "input=2:4:17")
    assert refused.status == 2 and "at most 16" in refused.err


def test_shapes_that_the_model_does_not_take(command: Any, model: Model, tmp_path: Path) -> None:
    """PyTorch's own words speak of constraints and of ``L['args'][0]``."""
    build = ("build", model("small"), "--cache-dir", tmp_path, "--shapes")
    for shapes, words in {
        "inptu=1:2:4": ["'inptu'", "did you mean 'input'?"],
        "input=1:2:4,8,3": ["3 axes", "[2, 8]"],
        "input=2,2:4:6": ["plain PyTorch", "input=2,2:4:6"],
        "input=2,2:8:16": ["axis 1 of input input vary", "constant (8)"],
        "input=4:2:1": ["4:2:1", "min <= opt <= max"],
    }.items():
        done = command(*build, shapes)
        assert done.status == 2, shapes
        for word in words:
            assert word in done.err


def test_arguments_of_one_model_and_of_many_stay_apart(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """An argument that is not looked at looks like one that was."""
    file = tmp_path / "build.toml"
    file.write_text(f'cache_dir = "cache"\n[[model]]\nmodel = "{model("small")}"\n')
    for arguments, words in {
        ("build", file, "--precision", "fp16"): ["--precision", "build.toml"],
        ("build", file, "--strict"): ["--strict", "build.toml"],
        ("build", file, "--shapes", "input=2"): ["--shapes", "build.toml"],
        ("build", file, "--workers", "0"): ["--workers", ">= 1"],
        ("build", model("small"), "--workers", "2"): ["--workers", ".toml"],
        ("build", model("small"), "--dry-run"): ["--dry-run", ".toml"],
    }.items():
        done = command(*arguments)
        assert done.status == 2, arguments
        for word in words:
            assert word in done.err
    assert not (tmp_path / "cache").exists()


def test_the_table_names_engine_targets_and_file(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """The same for a person."""
    done = command("build", model("small"), "--targets", "sm120", "--cache-dir", tmp_path)
    (entry,) = Cache(tmp_path).entries()
    assert entry.digest[:12] in done.out and "sm120" in done.out
    assert str(entry.plan) in done.out and "100% of" in done.out


def test_every_verb_takes_the_same_shapes(command: Any, model: Model, tmp_path: Path) -> None:
    """What CI checks must be what it ships: one engine, built once, for one range."""
    given = (model("small"), "--targets", "sm89", "--cache-dir", tmp_path, "--json")
    shapes = ("--shapes", "input=2:8:32")
    (engine,) = command("build", *given, *shapes).document["engines"]
    assert command("verify", *given, *shapes).document["built"] == 0
    (explained,) = command("explain", *given, *shapes).document["engines"]
    assert explained["digest"] == engine["digest"]
    planned = command("plan", *given, *shapes, "--card", "8GiB", "--precision", "fp32").document
    assert [row["batch"] for row in planned["rows"]] == [8]
    assert command("cache", "explain", *given[:-1], "--json", *shapes).status == 0
