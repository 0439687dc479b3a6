"""``singlecard cache``: engines are gigabytes, and somebody must be able to look after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import PLAN, Cache
from singlecard.engine.plan_report import PlanReport

Model = Callable[[str], str]


@pytest.fixture
def filled(command: Any, model: Model, tmp_path: Path) -> Path:
    """A cache with two engines: FP32 for two cards, TF32 for one."""
    command("build", model("small"), "--cache-dir", tmp_path, "--targets", "sm86,sm89")
    command(
        "build", model("small"), "--cache-dir", tmp_path, "--targets", "sm89", "--precision", "tf32"
    )
    assert len(Cache(tmp_path).entries()) == 2
    return tmp_path


def test_list_shows_what_is_there(command: Any, filled: Path) -> None:
    """One wants to know what takes the room."""
    done = command("cache", "list", "--cache-dir", filled, "--json")
    assert {item["key"]["targets"] for item in done.document["engines"]} == {"sm86,sm89", "sm89"}
    assert done.document["bytes"] == sum(item["bytes"] for item in done.document["engines"])
    shown = command("cache", "list", "--cache-dir", filled).out
    assert all(item["digest"][:12] in shown for item in done.document["engines"])


def test_an_empty_or_missing_cache_is_listed_as_such(command: Any, tmp_path: Path) -> None:
    """On a new machine this is no error, and nothing is made by looking."""
    done = command("cache", "list", "--cache-dir", tmp_path / "none", "--json")
    assert done.status == 0 and done.document["engines"] == []
    assert not (tmp_path / "none").exists()


def test_show_tells_what_an_engine_was_built_from(command: Any, filled: Path) -> None:
    """A run that builds again although the cache is full: the parts of the key tell why."""
    digest = Cache(filled).entries()[0].digest
    done = command("cache", "show", digest[:10], "--cache-dir", filled)
    assert done.status == 0 and digest in done.out
    for words in ("workspace_bytes", "tf32", "sm89", "Roofline", "RTX 4090"):
        assert words in done.out
    document = command("cache", "show", digest, "--cache-dir", filled, "--json").document
    assert document["digest"] == digest and document["report"]["kernels"]


def test_engines_of_full_tensorrt_are_shown(command: Any, tmp_path: Path) -> None:
    """Their kernels are not known, and their cards are in no list of TensorRT for RTX: neither is a
    reason to show nothing."""
    report = PlanReport(None, (), (), None, None, None, 4)
    key = {"targets": "sm90", "flavour": "tensorrt", "version": "10.13.0.35", "tf32": "False"}

    def write(folder: Path) -> dict[str, Any]:
        (folder / PLAN).write_bytes(b"plan")
        return {"key": key, "build_seconds": 0.5, "report": report.to_dict()}

    cache = Cache(tmp_path)
    cache.store("a" * 64, write)
    (cache.engines / "timings.nvidia-h200.cuda13.10.13.0.35.bin").write_bytes(b"timings")
    for action in (("list",), ("show", "aaaa")):
        done = command("cache", *action, "--cache-dir", tmp_path)
        assert done.status == 0 and "unknown" in done.out and "sm90" in done.out
        document = command("cache", *action, "--cache-dir", tmp_path, "--json").document
        (engine,) = document["engines"] if "engines" in document else [document]
        assert engine["kernels"] is None
    assert command("cache", "verify", "--cache-dir", tmp_path).status == 0
    done = command("cache", "prune", "--limit", "1GB", "--cache-dir", tmp_path)
    assert done.out.strip() == "removed 0 engines, kept 1"
    assert "removed 1 engine " in command("cache", "clear", "--cache-dir", tmp_path).out
    assert list(tmp_path.iterdir()) == []


def test_a_build_shows_that_kernels_are_not_known(
    command: Any, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of a build that took minutes must not fail behind it."""
    monkeypatch.setattr("singlecard.engine.build.lists_kernels", lambda: False)
    given = ("build", model("small"), "--cache-dir", tmp_path, "--targets", "sm89")
    done = command(*given)
    assert done.status == 0 and "unknown" in done.out
    (engine,) = command(*given, "--json").document["engines"]
    assert engine["kernels"] is None and engine["scratch_bytes"] is not None


def test_show_wants_a_digest_that_names_one_engine(command: Any, filled: Path) -> None:
    """Showing any of several would mislead."""
    done = command("cache", "show", "", "--cache-dir", filled)
    assert done.status == 2 and "begins 2 digests" in done.err
    done = command("cache", "show", "xyz", "--cache-dir", filled)
    assert done.status == 2 and "'xyz'" in done.err and "cache list" in done.err


def test_verify_finds_a_damaged_engine(command: Any, filled: Path) -> None:
    """A bad disk should be found before a night's job is."""
    assert command("cache", "verify", "--cache-dir", filled).status == 0
    entry = Cache(filled).entries()[0]
    data = bytearray(entry.plan.read_bytes())
    data[len(data) // 2] ^= 1
    entry.plan.write_bytes(data)
    done = command("cache", "verify", "--cache-dir", filled, "--json")
    assert done.status == 1 and done.document["damaged"] == 1
    (bad,) = [item for item in done.document["engines"] if not item["whole"]]
    assert bad["digest"] == entry.digest and "checksum" in bad["reason"]
    assert "1 damaged" in command("cache", "verify", "--cache-dir", filled).out


def test_prune_keeps_what_fits(command: Any, filled: Path) -> None:
    """A full disk needs room, not an empty cache."""
    newest = Cache(filled).entries()[0]
    done = command("cache", "prune", "--limit", f"{newest.size}", "--cache-dir", filled, "--json")
    assert done.document["kept"] == 1 and len(done.document["removed"]) == 1
    assert [entry.digest for entry in Cache(filled).entries()] == [newest.digest]
    done = command("cache", "prune", "--limit", "1TB", "--cache-dir", filled)
    assert done.out.strip() == "removed 0 engines, kept 1"


def test_clear_leaves_nothing(command: Any, filled: Path) -> None:
    """What is removed must be gone from the disk, locks included."""
    done = command("cache", "clear", "--cache-dir", filled)
    assert done.status == 0 and "removed 2 engines" in done.out
    assert list(filled.iterdir()) == []


def test_clear_touches_nothing_that_is_not_an_engine(command: Any, filled: Path) -> None:
    """One wrong folder after ``--cache-dir`` must not cost a user's home."""
    (filled / "Documents").mkdir()
    (filled / "Documents" / "thesis.tex").touch()
    (filled / "notes.lock").touch()
    for action in ("clear", "verify", "list"):
        assert command("cache", action, "--cache-dir", filled).status == 0
    assert {path.name for path in filled.iterdir()} == {"Documents", "notes.lock"}
    assert (filled / "Documents" / "thesis.tex").exists()


def test_a_file_in_the_folders_place_is_named(command: Any, tmp_path: Path) -> None:
    """An empty list would say that nothing was ever built."""
    (tmp_path / "file").touch()
    done = command("cache", "list", "--cache-dir", tmp_path / "file")
    assert done.status == 2 and "is not a folder" in done.err and "--cache-dir" in done.err


def test_list_tells_a_program_all_that_it_needs(command: Any, filled: Path) -> None:
    """A script that looks after the cache must not read the files of its format."""
    document = command("cache", "list", "--cache-dir", filled, "--json").document
    for item in document["engines"]:
        assert item["bytes"] == Path(item["plan"]).stat().st_size
        assert 0 < item["created"] <= item["last_used"] + 1
        assert item["key"]["network.inputs"] == "float32[2,8]"
    first, second = document["engines"]
    assert first["key"]["network"] == second["key"]["network"]


def test_explain_says_that_an_engine_is_there(command: Any, model: Model, filled: Path) -> None:
    """Before a deployment: status 0 means that a start on the card builds nothing."""
    given = ("--cache-dir", filled, "--targets", "sm86,sm89")
    done = command("cache", "explain", model("small"), *given, "--json")
    assert done.status == 0
    (engine,) = done.document["engines"]
    assert engine["cached"] and engine["nearest"] is None and engine["differences"] == []
    assert engine["digest"] in {entry.digest for entry in Cache(filled).entries()}
    assert "1 of 1 engines of" in command("cache", "explain", model("small"), *given).out


def test_explain_names_what_differs(command: Any, model: Model, filled: Path) -> None:
    """A run that builds although the cache is full: what is other, an option or the model?"""
    (nearest,) = [
        entry.digest for entry in Cache(filled).entries() if entry.manifest["key"]["tf32"] == "True"
    ]
    given = ("--cache-dir", filled, "--targets", "sm120", "--precision", "tf32")
    done = command("cache", "explain", model("small"), *given, "--json")
    assert done.status == 1
    (engine,) = done.document["engines"]
    assert not engine["cached"] and engine["nearest"] == nearest
    assert engine["differences"] == [{"part": "targets", "here": "sm120", "there": "sm89"}]
    assert engine["reason"] == f"targets differ from the nearest entry {nearest[:12]}"
    shown = command("cache", "explain", model("small"), *given).out
    assert engine["reason"] in shown and "sm120" in shown and nearest[:12] in shown
    assert len(Cache(filled).entries()) == 2  # nothing was built


def test_explain_takes_the_shapes_of_a_build(command: Any, model: Model, tmp_path: Path) -> None:
    """Without them it would explain another engine than the one that is missing."""
    given = ("--cache-dir", tmp_path, "--shapes", "0=1:4:16")
    command("build", model("small"), *given)
    assert command("cache", "explain", model("small"), *given).status == 0
    given = ("--cache-dir", tmp_path, "--shapes", "0=1:4:32")
    (engine,) = command("cache", "explain", model("small"), *given, "--json").document["engines"]
    (difference,) = engine["differences"]
    assert difference["part"] == "profiles"
    assert "(32, 8)" in difference["here"] and "(16, 8)" in difference["there"]


def test_explain_shows_only_the_inputs_that_differ(
    command: Any, model: Model, tmp_path: Path
) -> None:
    """A decoder has a hundred inputs, and one of them has another type."""
    given = ("--cache-dir", tmp_path, "--shapes")
    command("build", model("with_kwargs"), *given, "0=2,8")
    done = command("cache", "explain", model("with_kwargs"), *given, "0=3,8")
    assert "0: float32[3,8]" in done.out and "0: float32[2,8]" in done.out
    assert "float32[8]" not in done.out


def test_explain_compares_two_engines(command: Any, filled: Path) -> None:
    """Two entries where one expects one: what made them two?"""
    here, there = (entry.digest for entry in Cache(filled).entries())
    done = command("cache", "explain", here[:10], there, "--cache-dir", filled, "--json")
    assert done.status == 0
    assert (done.document["here"], done.document["there"]) == (here, there)
    assert {item["part"] for item in done.document["differences"]} == {"targets", "tf32"}
    shown = command("cache", "explain", here, there, "--cache-dir", filled).out
    assert "sm86,sm89" in shown and "tf32" in shown and "weights" not in shown
    same = command("cache", "explain", here, here, "--cache-dir", filled)
    assert same.status == 0 and "one key" in same.out


@pytest.mark.parametrize("given", [("1a2b",), ("1a2b", "3c4d", "5e6f")])
def test_explain_wants_a_model_or_two_digests(
    command: Any, tmp_path: Path, given: tuple[str, ...]
) -> None:
    """One digest alone looks like a model that is not there."""
    done = command("cache", "explain", *given, "--cache-dir", tmp_path)
    assert done.status == 2
    assert "a model, or the digests of two engines" in done.err and " ".join(given) in done.err


def test_explain_of_an_empty_cache(command: Any, model: Model, tmp_path: Path) -> None:
    """On a new machine there is nothing to compare with."""
    done = command("cache", "explain", model("small"), "--cache-dir", tmp_path)
    assert done.status == 1 and "the cache is empty" in done.out


def test_explain_of_a_model_without_engines(command: Any, model: Model, tmp_path: Path) -> None:
    """Nothing is missing where nothing can be built: the reason stands elsewhere."""
    done = command("cache", "explain", model("not_lowered"), "--cache-dir", tmp_path)
    assert done.status == 1 and "can become an engine: 'singlecard explain" in done.out
