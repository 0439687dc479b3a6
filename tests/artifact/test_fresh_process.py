"""A process that has never seen the model's classes runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from singlecard.artifact.loading import load
from tests.artifact.machine import Machine, same
from tests.artifact.models import Counting, bert


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_source(machine: Machine, tmp_path: Path) -> None:
    """The one promise of an artifact."""
    model, given = bert()
    machine.export(model, kwargs=given, fallback=True)
    torch.save(given, tmp_path / "given")
    code = """
import sys, torch, singlecard
loaded = singlecard.load("model.singlecard", device="cpu")
answer = loaded(**torch.load("given"))
assert not any(name.startswith(("tests", "transformers.models.bert")) for name in sys.modules)
torch.save(tuple(answer.to_tuple()), "answer")
print(type(answer).__module__, type(answer).__name__)
"""
    printed = run_python(code, tmp_path)
    want = model(**given)
    assert printed == f"{type(want).__module__} {type(want).__name__}"
    same(torch.load(tmp_path / "answer"), want.to_tuple())


def test_threads(machine: Machine) -> None:
    """A server calls one object from many threads; a counter must count each of them."""
    from concurrent.futures import ThreadPoolExecutor

    model = Counting().eval()
    loaded = machine.trip(model, torch.ones(2, 4))
    with ThreadPoolExecutor(8) as pool:
        calls = list(pool.map(lambda _: loaded(torch.ones(2, 4))[1], range(64)))
    assert sorted(int(call) for call in calls) == list(range(2, 130, 2))


def test_state_is_one_for_engines_and_pytorch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of which one half is PyTorch's and the other the engine's."""
    model = Counting().eval()
    machine.export(
        model,
        torch.ones(2, 4),
        dynamic_shapes={"x": {0: (1, 8)}},
        options={"profiles": {"x": {0: (1, 2, 4)}}},
        fallback=True,
    )
    loaded = load(machine.path, device="cpu")
    for rows in (2, 8, 3, 6):  # 8 and 6 are too many for the engine
        x = torch.rand(rows, 4)
        same(loaded(x), model(x))
    same(loaded.state_dict()["total"], model.total)


def test_no_gradients(machine: Machine) -> None:
    """An answer that asks for gradients keeps all that it was made of in memory."""
    model = Counting().eval()
    loaded = machine.trip(model, torch.ones(2, 4))
    with torch.enable_grad():
        answer, _ = loaded(torch.ones(2, 4, requires_grad=True))
    assert not answer.requires_grad


def test_it_tells_what_it_is(machine: Machine) -> None:
    """Who finds a file on a server wants to know."""
    report = machine.export(Counting().eval(), torch.ones(2, 4), options={"precision": "fp16"})
    loaded = machine.load()
    text = str(loaded)
    for words in ("float32 [2, 4]", "sm89", "fp16", "total", "part.calls", torch.__version__):
        assert words in text
    assert loaded.engines[0].digest == report.engines[0].digest
    assert loaded.engines[0].bytes == report.engines[0].report.engine_bytes
    assert loaded.targets == ("sm89",) and loaded.calibration is None
    assert "not signed" in str(report) and report.to_dict()["coverage"] == report.coverage
