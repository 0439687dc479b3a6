"""A job's process, however it ends."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from singlecard.offline import process as module
from singlecard.offline.build_file import Entry
from singlecard.offline.jobs import Job
from singlecard.offline.process import Process

Start = Callable[[str], Process]

#: A process that answers as a worker does, once it is let build.
ANSWERS = """
import json, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({"weights": 5, "held": 1, "peak": 7}), flush=True)
sys.stdin.readline()
print(json.dumps({"done": {"model": request["model"]}, "held": 1, "peak": 10**12}), flush=True)
"""


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a job whose process runs some Python instead of the worker."""
    started = []

    with tempfile.TemporaryFile() as log:

        def run(code: str) -> Process:
            monkeypatch.setattr(module, "_START", code)
            job = Job(Entry("small", "models.py:small"), "fp32", (), Path("/models"))
            started.append(Process.start(job, {"cache_dir": "/engines"}, 0, log, 1))
            return started[-1]

        yield run
        for process in started:
            process.end()


def finish(process: Process) -> Process:
    for _ in range(2000):
        if process.ended():
            process.messages()
            return process
        process.messages()
        time.sleep(0.01)
    raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", ["crashed", "SIGSEGV"]),
        ("import os; os.abort()", ["crashed", "SIGABRT"]),
        ("import os; os.kill(os.getpid(), 9)", ["SIGKILL", "memory", "workers"]),
        ("import os; os._exit(7)", ["status 7"]),
    ],
)
def test_an_end_without_an_answer_is_told(start: Start, code: str, words: list[str]) -> None:
    """A native library takes its process with it, and leaves no exception."""
    process = finish(start(code))
    assert process.answer is None
    for word in words:
        assert word in process.failure()


def test_the_end_of_what_it_said_is_kept(start: Start) -> None:
    """The cause stands in the last lines, whoever wrote them."""
    code = "import os; [os.write(2, b'line %d\\n' % place) for place in range(9999)]; os._exit(1)"
    said = finish(start(code)).said().splitlines()
    assert said[-1] == "line 9998" and len(said) == 20


def test_it_waits_for_permission_and_answers(start: Start) -> None:
    """Models that build before there is room would fill the memory together."""
    process = start(ANSWERS)
    for _ in range(2000):
        if process.messages():
            break
        time.sleep(0.01)
    assert not process.ended() and process.answer is None
    process.let_build(3)
    finish(process)
    assert process.answer is not None
    assert process.answer["done"] == {"model": "models.py:small"}
    assert process.peak == 10**12


def test_ending_it_ends_what_it_started(start: Start) -> None:
    """A data loader of the model's would go on after it."""
    code = (
        "import subprocess, sys, time; sys.stdin.readline(); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
        "print(child.pid, file=sys.stderr, flush=True); time.sleep(99)"
    )
    process = start(code)
    for _ in range(2000):
        if process.said():
            break
        time.sleep(0.01)
    child = int(process.said())
    process.end()
    for _ in range(2000):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise AssertionError("the child goes on")
