"""Plans that lack a piece do not get into the cache, and a build without memory ends well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.engine.whole import missing_bytes
from singlecard.errors import LoweringError
from singlecard.network import building

X = torch.ones(2, 8)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What TensorRT wrote, whole."""
    folder = tmp_path_factory.mktemp("plan")
    report = singlecard.verify(
        nn.Linear(8, 4).eval(), (X,), options={"targets": "sm89", "cache_dir": folder}
    )
    assert report.engines == 1
    (file,) = folder.rglob("engine.plan")
    return file.read_bytes()


def test_a_whole_plan_lacks_nothing(plan: bytes, tmp_path: Path) -> None:
    """No engine would be built any more."""
    file = tmp_path / "engine.plan"
    file.write_bytes(plan)
    assert missing_bytes(file, 0) == 0
    file.write_bytes(b"another layout, of another TensorRT")
    assert missing_bytes(file, 35) == 0


@pytest.mark.parametrize(
    ("cut", "weights", "missing"),
    [
        (lambda plan: b"", 0, 1),
        (lambda plan: plan[:100], 0, lambda plan: len(plan) - 100),
        (lambda plan: plan[:200] + plan[300:], 0, 100),
        (lambda plan: plan[-500:], 800, 300),
    ],
    ids=["all", "the end", "the middle", "the beginning"],
)
def test_what_a_plan_lacks(
    plan: bytes, tmp_path: Path, cut: Any, weights: int, missing: Any
) -> None:
    """It would be found in the cache, and fail on the card, each time."""
    file = tmp_path / "engine.plan"
    file.write_bytes(cut(plan))
    assert missing_bytes(file, weights) == (missing(plan) if callable(missing) else missing)


def test_a_piece_that_finds_no_memory_is_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's bindings pass the failure over, and the builder says that all went well."""

    def write(self: Any, data: Any) -> int:
        raise MemoryError

    options = {"targets": "sm89", "cache_dir": tmp_path}
    model = nn.Linear(8, 4).eval()
    with monkeypatch.context() as patch:
        patch.setattr(building._writer_class(), "write", write)
        report = singlecard.verify(model, (X,), options=options)
        assert report.engines == 0 and "out of the plan" in report.fallback[0][1]
        with pytest.raises(LoweringError, match="want of host memory: free some"):
            singlecard.verify(model, (X,), options={**options, "strict": True})
    left = [path.name for path in tmp_path.glob("engines.*/*")]
    assert all(name.endswith(".lock") for name in left), left
    assert singlecard.verify(model, (X,), options=options).built == 1


#: Builds 128 MiB of weights with 100 MiB of memory left, then with all there is.
SCRIPT = """
import json, pathlib, resource, sys, torch, singlecard, singlecard.errors
options = {"targets": "sm89", "cache_dir": sys.argv[1], "strict": sys.argv[2] == "strict"}
x = torch.ones(2, 2048)
singlecard.verify(torch.nn.Linear(8, 4).eval(), (torch.ones(2, 8),), options=options)
model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(8))).eval()
status = pathlib.Path("/proc/self/status").read_text().split()
used = int(status[status.index("VmData:") + 1]) * 1024
limits = resource.getrlimit(resource.RLIMIT_DATA)
resource.setrlimit(resource.RLIMIT_DATA, (used + (100 << 20), limits[1]))
try:
    report = singlecard.verify(model, (x,), options=options)
    first = {"engines": report.engines, "error": report.max_abs_error, "why": report.fallback[0][1]}
except singlecard.errors.LoweringError as error:
    first = {"raised": str(error)}
resource.setrlimit(resource.RLIMIT_DATA, limits)
left = sorted(path.name for path in pathlib.Path(sys.argv[1]).glob("engines.*/*"))
report = singlecard.verify(model, (x,), options=options)
print(json.dumps({"first": first, "left": left, "built": report.built}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what is in use")
@pytest.mark.parametrize("way", ["fallback", "strict"])
def test_memory_that_runs_out_while_building(tmp_path: Path, way: str) -> None:
    """A server that compiles a second model would die, or keep half of an engine."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), way], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    if way == "strict":
        assert "OutOfMemory" in told["first"]["raised"], told
    else:
        assert told["first"]["engines"] == told["first"]["error"] == 0
        assert "OutOfMemory" in told["first"]["why"], told
    assert [len(name) for name in told["left"] if not name.endswith(".lock")] == [64], told
    assert told["built"] == 1
