"""Engines on disk: what goes in comes out, and what is built is built once."""

from __future__ import annotations

import errno
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from singlecard.engine import build
from singlecard.engine.build import get_engine, key_digest, key_parts
from singlecard.engine.cache import Cache, file_digest
from singlecard.errors import CacheError
from singlecard.lowering.lower import Lowered
from singlecard.network.building import BuildSettings
from singlecard.network.net import Net
from tests.engine.stores import A, B, C, flip, visible


def test_round_trip(cache: Cache) -> None:
    """What was stored is found, with its facts; what was not is missing."""
    entry = cache.find(A)
    assert entry is not None and entry.plan.read_bytes() == b"plan of a"
    assert entry.size == 9 and entry.manifest["build_seconds"] == 0.5
    assert entry.manifest["plan_digest"] == file_digest(entry.plan)
    missing = cache.look(C)
    assert missing.entry is None and missing.reason == f"{cache.path(C)} is not there"
    assert visible(cache) == {A, B}


def test_folder_is_private(cache: Cache) -> None:
    """Whoever can write engines there runs code as the user."""
    for folder in (cache.folder, cache.engines, cache.path(A)):
        assert folder.stat().st_mode & 0o077 == 0


def test_foreign_folders_do_not_disturb(cache: Cache) -> None:
    """Listing, pruning and clearing meet whatever lies there."""
    for folder in (cache.folder / "notes", cache.engines / "empty"):
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    assert {entry.digest for entry in cache.entries()} == {A, B}
    assert set(cache.verify()) == {A, B}
    assert len(cache.prune(0)) == 2 and cache.clear() == 0
    assert visible(cache) == {"empty"} and (cache.folder / "notes").exists()


def small(factor: float = 2.0) -> Lowered:
    net = Net()
    x = net.input("input_0", torch.float32, (4, 4))
    net.mark_output(net.matmul(x, net.constant(torch.full((4, 4), factor))), "output_0")
    return Lowered(net, (), (), {}, {}, {})


SETTINGS = BuildSettings(("sm89",))


def _build(folder: Path, results: Any) -> None:
    engine = get_engine(small(), SETTINGS, Cache(folder))
    results.put((engine.digest, engine.built))


def test_concurrent_processes_build_once(tmp_path: Path) -> None:
    """Eight workers that start together must not build the same engine eight times."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_build, args=(tmp_path / "c", results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert len({digest for digest, _ in found}) == 1
    assert sorted(built for _, built in found) == [False, False, True]


def test_damaged_engine_is_rebuilt_the_same(tmp_path: Path) -> None:
    """Builds are deterministic: a rebuilt engine is the same to the byte."""
    cache = Cache(tmp_path / "c")
    first = get_engine(small(), SETTINGS, cache)
    content = first.plan.read_bytes()
    flip(first.plan)
    again = get_engine(small(), SETTINGS, cache)
    assert first.built and again.built and again.plan.read_bytes() == content
    loaded = get_engine(small(), SETTINGS, cache)
    assert not loaded.built and loaded.seconds == 0 and loaded.report == first.report
    assert get_engine(small(3.0), SETTINGS, cache).digest != first.digest


def test_full_disk_while_the_plan_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan cut off by a full disk must be an error that says so, not an entry."""
    real = build.build_plan

    class Full:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def on_full_disk(net: Any, profiles: Any, settings: Any, file: Any, *rest: Any) -> Any:
        return real(net, profiles, settings, Full(), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "build_plan", on_full_disk)
    cache = Cache(tmp_path / "c")
    with pytest.raises(CacheError, match="No space left"):
        get_engine(small(), SETTINGS, cache)
    assert visible(cache) == set()


def test_key_parts_are_named(tmp_path: Path) -> None:
    """A miss explains itself only where each part of the key can be read."""
    parts = key_parts(small(), SETTINGS)
    assert {"network", "profiles", "flavour", "version", "targets", "tf32"} <= set(parts)
    assert key_digest(parts) == key_digest(dict(reversed(parts.items())))
