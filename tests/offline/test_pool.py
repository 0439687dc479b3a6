"""The pool of workers: as many as memory allows, none for ever behind the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from singlecard.free_memory import _container_memory, free_memory
from singlecard.offline.build_file import Entry
from singlecard.offline.jobs import Job
from singlecard.offline.memory import (
    BUILDING_BYTES,
    BUILDING_FACTOR,
    LOADING_BYTES,
    held_memory,
    need_after_loading,
)
from singlecard.offline.pool import Limits, Outcome, Pool

GB = 10**9

BUILT = {"engines": [{"built": True}], "fallback": [], "remarks": []}


def job(name: str) -> Job:
    return Job(Entry(name, "models.py:small"), "fp32", (), Path("/models"))


class Desk:
    """Stands for the machine: what runs at a time, and what was set aside for it."""

    def __init__(self, weights: Mapping[str, int] | None = None, ends_after: int = 2) -> None:
        self.weights = dict(weights or {})
        self.ends_after = ends_after
        self.building: list[set[str]] = []
        self.ended: list[str] = []

    def start(
        self, job: Job, options: Mapping[str, Any], reserved: int, log: Any, threads: int
    ) -> FakeProcess:
        return FakeProcess(self, job, reserved)

    def watch(self, running: Sequence[Any]) -> None:
        self.building.append({p.job.entry.name for p in running if p.state == "building"})


class FakeProcess:
    """Says what its weights are when it starts, and ends some looks after it may build."""

    def __init__(self, desk: Desk, job: Job, reserved: int) -> None:
        self.desk, self.job, self.reserved, self.state = desk, job, reserved, "loading"
        self.seconds, self.peak, self.answer = 1.0, 2 * GB, None
        self._looks, self._told = 0, False
        self._pipe, other = os.pipe()
        os.close(other)  # `select` finds it ready at once

    def fileno(self) -> int:
        return self._pipe

    def let_build(self, reserved: int) -> None:
        self.reserved, self.state = reserved, "building"

    def messages(self) -> list[dict[str, Any]]:
        if not self._told:
            self._told = True
            return [
                {"weights": self.desk.weights.get(self.job.entry.name, 0), "held": 0, "peak": 0}
            ]
        self._looks += self.state == "building"
        return []

    def ended(self) -> bool:
        if self._looks < self.desk.ends_after:
            return False
        self.answer = {"done": {"document": BUILT, "parts": {}}}
        return True

    def end(self) -> None:
        os.close(self._pipe)
        self.desk.ended.append(self.job.entry.name)


def run(
    desk: Desk, names: str, limits: Limits, needs: Mapping[str, int] | None = None
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    needs = needs or {}
    pool = Pool(limits, lambda job: needs.get(job.entry.name), {}, desk.watch, desk.start)
    pool.run([job(name) for name in names], lambda it: outcomes.update({it.job.entry.name: it}))
    assert sorted(outcomes) == sorted(names)
    return outcomes


def test_jobs_run_together_while_their_needs_fit() -> None:
    """A pool that waits without need takes twice the time; one that does not is killed."""
    desk = Desk()
    run(desk, "abcd", Limits(4, 10 * GB), {"a": 6 * GB, "b": 5 * GB, "c": 4 * GB, "d": GB})
    assert {"a", "c"} in desk.building
    assert not any({"a", "b"} <= together for together in desk.building)


def test_no_more_jobs_than_workers() -> None:
    """Cores that are shared by too many make each of them slower."""
    desk = Desk()
    run(desk, "abcdef", Limits(2, 100 * GB), dict.fromkeys("abcdef", GB))
    assert max(map(len, desk.building)) == 2


def test_a_job_beyond_the_budget_runs_alone_and_says_so() -> None:
    """It may well work, and nobody else should pay for it where it does not."""
    desk = Desk()
    outcomes = run(desk, "abc", Limits(3, 4 * GB), {"a": GB, "b": 9 * GB, "c": GB})
    assert {"b"} in desk.building
    assert not any("b" in together and len(together) > 1 for together in desk.building)
    assert "9 GB" in outcomes["b"].note and "4 GB" in outcomes["b"].note
    assert outcomes["a"].note == ""


def test_an_unknown_model_waits_with_its_weights_until_there_is_room() -> None:
    """The first run of a build file knows nothing of its models but what they say once loaded."""
    weights = 2 * GB
    need = need_after_loading(0, 0, weights)
    desk = Desk(dict.fromkeys("abc", weights), ends_after=4)
    run(desk, "abc", Limits(3, round(2.5 * need)))
    assert max(map(len, desk.building)) == 2
    desk = Desk(dict.fromkeys("abc", weights), ends_after=4)
    run(desk, "abc", Limits(3, round(1.5 * need)))
    assert max(map(len, desk.building)) == 1


def test_one_unknown_model_is_loaded_at_a_time() -> None:
    """Three of 10 GB would fill the memory before the first could say how large it is."""
    loading = []

    class Watching(Desk):
        def watch(self, running: Sequence[Any]) -> None:
            super().watch(running)
            loading.append(sum(process.state in ("loading", "waiting") for process in running))

    desk = Watching(dict.fromkeys("abc", GB))
    run(desk, "abc", Limits(3, 100 * GB))
    assert max(loading, default=0) <= 1


def test_what_runs_is_ended_when_the_pool_is_interrupted() -> None:
    """Ctrl-C would leave builds behind, with their memory."""

    class Interrupted(Desk):
        def watch(self, running: Sequence[Any]) -> None:
            raise KeyboardInterrupt

    desk = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run(desk, "ab", Limits(2, 100 * GB), {"a": GB, "b": GB})
    assert sorted(desk.ended) == ["a", "b"]


def test_needs_grow_with_the_weights() -> None:
    """An estimate that forgets the weights admits anything."""
    assert need_after_loading(3 * GB, 0, GB) == 3 * GB + BUILDING_BYTES + BUILDING_FACTOR * GB
    assert need_after_loading(GB, 9 * GB, GB) == 9 * GB  # what loading took counts too


@pytest.fixture
def ballast() -> Iterator[bytes]:
    yield b"\1" * 200_000_000


def test_memory_is_measured(ballast: bytes) -> None:
    """Budgets and peaks are only as good as what they are read from."""
    held, peak = held_memory()
    assert len(ballast) < held <= peak
    assert LOADING_BYTES // 10 < free_memory() < 2**50
    assert held_memory(2**22 + 1) == (0, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts(tmp_path: Path, version: int) -> None:
    """In a container the machine's memory is not ours: the system kills who believes so."""
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    (folder / names[0]).write_text(f"{8 * GB}\n")
    (folder / names[1]).write_text(f"{3 * GB}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {GB}\n")
    assert _container_memory(tmp_path) == [6 * GB]
    if version == 2:
        (folder / names[0]).write_text("max\n")
        assert _container_memory(tmp_path) == []


def test_a_job_is_known_by_all_that_was_asked_of_it() -> None:
    """Another range of sizes is another engine: a job that seems done would not be built."""
    keys = {
        Job(Entry("a", "m.py:f", **changed), precision, targets, Path(folder)).key
        for changed in ({}, {"options": {"strict": True}}, {"calibration": Path("t.json")})
        for precision in ("fp16", "int8")
        for targets in ((), ("sm86",), ("sm86", "sm89"))
        for folder in ("/a", "/b")
    }
    assert len(keys) == 3 * 2 * 3 * 2
    assert json.dumps(job("a").request())
