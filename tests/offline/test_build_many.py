"""Build files from end to end, with real processes: crashes, kills, second runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from singlecard.cli import main
from singlecard.engine.cache import Cache
from singlecard.offline.state import NAME

MODELS = """
import os, signal, time
from pathlib import Path
from layers import WIDTH

def small():
    import torch
    torch.manual_seed(0)
    print("printed by the model")
    layers = torch.nn.Linear(8, WIDTH), torch.nn.ReLU()
    return torch.nn.Sequential(*layers).eval(), (torch.ones(2, 8),)

def crashes():
    os.write(2, b"about to crash\\n")
    os.kill(os.getpid(), signal.SIGSEGV)

def raises():
    raise RuntimeError("weights are missing")

def waits():
    Path("pid").write_text(str(os.getpid()))
    while Path("hold").exists():
        time.sleep(0.02)
    return small()
"""

Command = Callable[..., tuple[int, Any]]


def write(folder: Path, *models: str, top: str = "") -> None:
    tables = "".join(f'[[model]]\nmodel = "models.py:{model}"\n' for model in models)
    (folder / "models.py").write_text(MODELS)
    (folder / "layers.py").write_text("WIDTH = 4\n")
    (folder / "build.toml").write_text(f'cache_dir = "engines"\n{top}\n{tables}')


@pytest.fixture
def build(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``singlecard build FOLDER/build.toml --json``; return its status and document."""

    def run(folder: Path, *arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        status = main(["build", str(folder / "build.toml"), "--json", *arguments])
        return status, json.loads(capsys.readouterr().out)

    return run


def by_name(document: Any) -> dict[str, Any]:
    return {item["name"]: item for item in document["jobs"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a build file was built once; two of its three models fail."""
    place = tmp_path_factory.mktemp("many")
    write(place, "crashes", "raises", "small", top='workers = 2\ntargets = [["sm86", "sm89"]]')
    file, answer = str(place / "build.toml"), place / "answer.json"
    with answer.open("w") as out:
        command = [sys.executable, "-m", "singlecard", "build", file, "--json"]
        status = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert status.returncode == 1, status.stderr
    return place


def test_what_fails_takes_nothing_else_down(folder: Path) -> None:
    """One broken model of thirty would cost the night in which all were to be built."""
    document = json.loads((folder / "answer.json").read_text())
    jobs = by_name(document)
    assert (document["succeeded"], document["failed"]) == (1, 2)
    assert jobs["small"]["status"] == "built" and jobs["small"]["coverage"] == 1.0
    assert jobs["small"]["targets"] == "sm86,sm89" and jobs["small"]["peak_bytes"] > 10**8
    (engine,) = jobs["small"]["engines"]
    (entry,) = Cache(folder / "engines").entries()
    assert engine["digest"] == entry.digest and Path(engine["plan"]) == entry.plan
    assert "SIGSEGV" in jobs["crashes"]["reason"]
    assert "about to crash" in jobs["crashes"]["stderr"]
    assert "weights are missing" in jobs["raises"]["reason"]
    assert "models.py:" in jobs["raises"]["reason"]


def test_a_second_run_does_what_is_missing(
    folder: Path, build: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loading a model takes minutes; a run that has nothing to do must not take them."""
    (built,) = Cache(folder / "engines").entries()
    status, document = build(folder)
    jobs = by_name(document)
    assert status == 1 and jobs["crashes"]["status"] == jobs["raises"]["status"] == "failed"
    assert jobs["small"]["status"] == "kept" and jobs["small"]["seconds"] == 0
    assert [engine["digest"] for engine in jobs["small"]["engines"]] == [built.digest]

    assert main(["build", str(folder / "build.toml"), "--only", "small"]) == 0
    table = capsys.readouterr().out
    assert "1 kept" in table and "1 of 1 done" in table and str(folder / "engines") in table


def test_a_dry_run_says_what_would_be_built_and_why(folder: Path, build: Command) -> None:
    """Thirty models are not built again to find out which of them changed."""
    status, plan = build(folder, "--dry-run", "--only", "small")
    assert status == 0
    (job,) = plan["jobs"]
    assert (job["status"], job["reason"]) == ("kept", "") and job["memory_bytes"] > 10**8
    (folder / "layers.py").write_text("WIDTH = 5\n")
    try:
        (job,) = build(folder, "--dry-run", "--only", "small")[1]["jobs"]
        assert job["status"] == "to build" and "layers.py changed" in job["reason"]
    finally:
        (folder / "layers.py").write_text("WIDTH = 4\n")
    (job,) = build(folder, "--dry-run", "--only", "small", "--rebuild")[1]["jobs"]
    assert job["status"] == "to build"


def test_the_table_tells_what_failed_and_why(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person reads the log of a CI box from its end."""
    assert main(["build", str(folder / "build.toml")]) == 1
    table = capsys.readouterr().out
    assert "1 of 3 done" in table and "2 failed" in table and "FAILED" in table
    assert "weights are missing" in table and "about to crash" in table


def test_a_killed_run_is_finished_by_the_next(tmp_path: Path, build: Command) -> None:
    """CI boxes are taken away in the middle of their work."""
    write(tmp_path, "small", "waits", top="workers = 1")
    with held(tmp_path) as run:
        assert (tmp_path / "engines" / NAME).exists()
        run.kill()
        run.wait()
        until(lambda: not is_running(int((tmp_path / "pid").read_text())))
    status, document = build(tmp_path)
    assert status == 0
    jobs = by_name(document)
    assert jobs["small"]["status"] == "kept"
    assert jobs["waits"]["status"] == "found"  # the same network: its engine was there


def test_interrupting_ends_the_workers(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches the command alone; builds must not go on behind it."""
    write(tmp_path, "waits", top="workers = 1")
    with held(tmp_path) as run:
        run.send_signal(signal.SIGINT)
        _, told = run.communicate(timeout=60)
        assert run.returncode == 130 and "interrupted" in told
        until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def test_a_wrong_file_builds_nothing(tmp_path: Path) -> None:
    """A mistake in the last table would be found after hours."""
    write(tmp_path, "small", "nothing", top="worker = 2")
    assert main(["build", str(tmp_path / "build.toml")]) == 2
    assert not (tmp_path / "engines").exists()


def _hears_interrupts() -> None:
    """Undo what a shell does to a command that it starts in the background: ``pytest &``."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class held:
    """A run of a build file whose model ``waits`` has begun, and waits until the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> subprocess.Popen[str]:
        (self.folder / "hold").touch()
        command = [sys.executable, "-m", "singlecard", "build", str(self.folder / "build.toml")]
        self.run = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hears_interrupts,
        )
        pid = self.folder / "pid"
        until(lambda: (pid.exists() and pid.read_text() != "") or self.run.poll() is not None)
        return self.run

    def __exit__(self, *_: object) -> None:
        (self.folder / "hold").unlink()
        self.run.kill()
        self.run.communicate()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"  # one that nobody has waited for
