"""``singlecard cache``: engines are gigabytes, and somebody must be able to look after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import Cache

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
