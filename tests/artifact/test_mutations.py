"""Artifacts whose values were exchanged: an error of ours or an answer, and nothing else."""

from __future__ import annotations

import copy
import json
import random
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import blake3
import pytest
import torch
from torch import Tensor, nn

from singlecard.artifact.archive import MANIFEST
from singlecard.artifact.exporting import export
from singlecard.artifact.loading import load
from singlecard.errors import SinglecardError
from tests.artifact.models import Bessel, Counting

#: Values that are somewhere else, too long, too large, of another type, or of another's.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**40, 1e308, "", "x", "9" * 5000, "\0", "../../etc/passwd",
    "aten.copy_.default", "os.system", [], {}, [[]], [0] * 1000, {"at": 0}, {"at": 10**9},
    {"float": "1e999"}, {"torch": "x"}, {"device": "cuda:99"}, {"function": "os.system"},
    {"tuple": []}, {"size": 0}, {"list": [{"at": 0}] * 3},
)  # fmt: skip

#: What happens in a process that runs, writes, removes or starts something.
EVENTS = ("compile", "exec", "import", "os.remove", "os.rename", "os.system", "socket.connect")
EVENTS += ("subprocess.Popen",)


class Choosing(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"a": torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "b": [x.split(2, 1)]}


class Watching:
    """Notes what a process does while it reads; an audit hook cannot be taken out again."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (event in EVENTS or (event == "open" and _writes(args))):
            self.seen.append(f"{event} {str(args)[:200]}")


def _writes(args: tuple[Any, ...]) -> bool:
    return isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")


WATCHING = Watching()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def mutated(draw: random.Random, value: Any) -> Any:
    """Remove, exchange or replace some of the values in a nest."""
    value = copy.deepcopy(value)
    paths = list(places(value))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        path, other = draw.choice(paths[1:]), draw.choice(paths)
        how = draw.random()
        try:
            inside = at(value, path[:-1])
            if how < 0.15:
                del inside[path[-1]]
            elif how < 0.3:
                inside[path[-1]] = copy.deepcopy(at(value, other))
            elif how < 0.4 and isinstance(inside[path[-1]], int):
                inside[path[-1]] += draw.choice((-1, 1, 100))
            else:
                inside[path[-1]] = copy.deepcopy(draw.choice(STRANGE))
        except (LookupError, TypeError):  # went with an earlier change
            pass
    return value


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, bytes], Tensor]]:
    folder, found = tmp_path_factory.mktemp("artifacts"), []
    options = {"targets": "sm89", "min_block_size": 1, "cache_dir": folder / "cache"}
    for model, x in (
        (Bessel(), torch.ones(4, 8)),
        (Counting(), torch.ones(4, 4)),
        (Choosing(), torch.ones(4, 8)),
    ):
        export(model.eval(), (x,), path=folder / "a", fallback=True, options=options)
        load(folder / "a", device="cpu")(x)  # what is imported late is there then
        with zipfile.ZipFile(folder / "a") as container:
            found.append(
                ({info.filename: container.read(info) for info in container.infolist()}, x)
            )
    return found


@pytest.mark.parametrize("seed", range(4))
def test_exchanged_values(
    artifacts: list[tuple[dict[str, bytes], Tensor]], tmp_path: Path, seed: int
) -> None:
    """A file that lies is told by the name of the file, whatever it lies about."""
    draw, answered, path = random.Random(seed), 0, tmp_path / "a"
    for number in range(100):
        held, x = draw.choice(artifacts)
        members = dict(held)
        manifest = json.loads(members[MANIFEST])
        programs = [name for name in members if name.endswith(".json") and name != MANIFEST]
        if draw.random() < 0.5:
            name = draw.choice(programs)
            members[name] = json.dumps(mutated(draw, json.loads(members[name]))).encode()
            digest = blake3.blake3(members[name]).hexdigest()
            manifest["members"][name] = {"bytes": len(members[name]), "blake3": digest}
        else:
            manifest = mutated(draw, manifest)
        members[MANIFEST] = json.dumps(manifest).encode()
        with zipfile.ZipFile(path, "w") as container:
            for name, content in members.items():
                container.writestr(name, content)
        WATCHING.seen.clear()
        WATCHING.on = True
        try:
            load(path, device="cpu")(x)
            answered += 1
        except SinglecardError:
            pass
        finally:
            WATCHING.on = False
        assert not WATCHING.seen, f"file {number}"
    assert 10 < answered < 90
