"""What a second run knows of the first."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from singlecard.engine.cache import PLAN, Cache
from singlecard.offline.build_file import Entry
from singlecard.offline.jobs import Job
from singlecard.offline.parts import changed_part, parts_now
from singlecard.offline.state import NAME, State

DIGEST = "ab" * 32


def job(folder: Path, **changed: Any) -> Job:
    precision = changed.pop("precision", "fp32")
    return Job(Entry("small", "models.py:small", **changed), precision, ("sm86",), folder)


def filled(folder: Path) -> Cache:
    """Return a cache with one engine."""
    cache = Cache(folder / "engines")

    def write(place: Path) -> dict[str, Any]:
        (place / PLAN).write_bytes(b"plan")
        return {"key": {}, "build_seconds": 0.0, "report": {}}

    cache.store(DIGEST, write)
    return cache


DOCUMENT = {"coverage": 1.0, "engines": [{"digest": DIGEST, "engine_bytes": 4, "built": True}]}


def remembered(folder: Path, peak: int = 10**9) -> tuple[Cache, Path]:
    cache, source = filled(folder), folder / "models.py"
    source.write_text("x = 1\n")
    State(cache).remember(job(folder), peak, parts_now([source]), DOCUMENT)
    return cache, source


def test_a_finished_job_is_kept(tmp_path: Path) -> None:
    """The point of it: a second run would load thirty models to find that all is there."""
    cache, _ = remembered(tmp_path)
    state = State(cache)
    assert state.why_build(job(tmp_path)) is None
    (engine,) = state.document(job(tmp_path))["engines"]
    assert engine["built"] is False and Path(engine["plan"]).read_bytes() == b"plan"
    assert "not built so far" in str(state.why_build(job(tmp_path, precision="fp16")))
    assert "not built so far" in str(state.why_build(job(tmp_path / "elsewhere")))


def test_a_source_that_changed_is_named(tmp_path: Path) -> None:
    """Otherwise an edited model ships with the engines of the old one."""
    cache, source = remembered(tmp_path)
    source.write_text("x = 2\n")
    assert f"{source} changed" in str(State(cache).why_build(job(tmp_path)))
    source.unlink()
    assert f"{source} is gone" in str(State(cache).why_build(job(tmp_path)))


def test_another_version_of_a_package_is_named(tmp_path: Path) -> None:
    """A new TensorRT wants new engines, a new transformers may be another model."""
    parts = parts_now([])
    assert changed_part(parts) is None
    assert parts["package singlecard"] and parts["package blake3"]
    assert "blake3 is" in str(changed_part({**parts, "package blake3": "0.0.1"}))
    assert "was 0.0.1" in str(changed_part({**parts, "package blake3": "0.0.1"}))
    assert "nothing_such is gone" in str(changed_part({**parts, "package nothing_such": "1"}))


def test_modules_of_the_users_own_are_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is more than the file that is named: layers live in its neighbours."""
    (tmp_path / "own_layers.py").write_text("WIDTH = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        import own_layers

        assert own_layers.WIDTH == 3
        parts = parts_now([])
    finally:
        sys.modules.pop("own_layers", None)
    assert f"file {tmp_path / 'own_layers.py'}" in parts
    assert not any("site-packages" in name for name in parts)


def test_an_engine_that_is_gone_or_damaged_is_built_again(tmp_path: Path) -> None:
    """The state says what was built, the cache what is there."""
    cache, _ = remembered(tmp_path)
    entry = cache.find(DIGEST)
    assert entry is not None
    entry.plan.write_bytes(b"nalp")
    assert DIGEST[:12] in str(State(cache).why_build(job(tmp_path)))


def test_a_job_that_failed_is_forgotten(tmp_path: Path) -> None:
    """A run after a failure would call it up to date."""
    cache, _ = remembered(tmp_path)
    State(cache).forget(job(tmp_path))
    assert "not built so far" in str(State(cache).why_build(job(tmp_path)))


def test_runs_that_overlap_keep_what_the_other_wrote(tmp_path: Path) -> None:
    """Two build files may fill one cache at the same time."""
    cache, source = remembered(tmp_path)
    first, second = State(cache), State(cache)
    for state, precision in ((first, "fp16"), (second, "tf32")):
        state.remember(job(tmp_path, precision=precision), 1, parts_now([source]), DOCUMENT)
    state = State(cache)
    for precision in ("fp32", "fp16", "tf32"):
        assert state.why_build(job(tmp_path, precision=precision)) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "jobs": {}}', '{"format": 1, "jobs": {"a": 3}}']
)
def test_a_damaged_state_costs_time_and_nothing_else(tmp_path: Path, text: str) -> None:
    """A file that a full disk cut short must not stop every later build."""
    cache, source = remembered(tmp_path)
    (cache.folder / NAME).write_text(text)
    state = State(cache)
    assert "not built so far" in str(state.why_build(job(tmp_path)))
    state.remember(job(tmp_path), 1, parts_now([source]), DOCUMENT)
    assert State(cache).why_build(job(tmp_path)) is None
    assert json.loads((cache.folder / NAME).read_text())["format"] == 1


def test_peaks_of_earlier_jobs_say_what_a_job_needs(tmp_path: Path) -> None:
    """Room that was needed before is needed again; a guess would be too little or too much."""
    cache, source = remembered(tmp_path, peak=10**9)
    state = State(cache)
    own, other = state.need(job(tmp_path)), state.need(job(tmp_path, precision="int8"))
    assert own is not None and other is not None
    assert 10**9 < own < other < 2 * 10**9
    assert state.need(job(tmp_path, memory=5)) == 5
    assert state.need(job(tmp_path / "elsewhere")) is None
