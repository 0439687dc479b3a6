"""MODEL: users name their own files, which import their neighbours and print what they like."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from singlecard.errors import ModelError
from singlecard.report.model import load_model

SOURCE = """
import torch
from neighbour import WIDTH

def make():
    return torch.nn.Linear(WIDTH, 1), (torch.ones(1, WIDTH),)

def named():
    return torch.nn.Linear(WIDTH, 1), [], {"input": torch.ones(1, WIDTH)}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour.py").write_text("WIDTH = 8\n")
    (tmp_path / "model.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("neighbour", None)


def test_a_file_imports_its_neighbours(folder: Path) -> None:
    """Most models are spread over several files."""
    model = load_model(f"{folder / 'model.py'}:make")
    assert model.module(*model.args).shape == (1, 1) and model.kwargs == {}


def test_a_module_is_found_from_the_folder_one_stands_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A console script does not look there by itself, ``python -m`` does."""
    monkeypatch.chdir(folder)
    model = load_model("model:named")
    sys.modules.pop("model", None)
    assert model.args == () and list(model.kwargs) == ["input"]


def test_a_file_hides_no_installed_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called json.py must not become the json of everybody else."""
    import json

    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "json.py").write_text("def f():\n    return abs, (1,)\n")
    assert load_model(f"{tmp_path / 'json.py'}:f").args == (1,)
    assert sys.modules["json"] is json


def test_an_error_keeps_its_cause(tmp_path: Path) -> None:
    """With the cause gone nobody can see the traceback."""
    (tmp_path / "m.py").write_text("def f():\n    return {}['weights']\n")
    with pytest.raises(ModelError, match=r"KeyError at .*m\.py:2: 'weights'") as caught:
        load_model(f"{tmp_path / 'm.py'}:f")
    assert isinstance(caught.value.__cause__, KeyError)


class Both(torch.nn.Module):
    def forward(self, x: torch.Tensor, *, bias: torch.Tensor) -> torch.Tensor:
        return x * 2 + bias


def save(path: Path, dynamic: bool) -> str:
    batch = torch.export.Dim("batch", min=2, max=16) if dynamic else None
    shapes = {"x": {0: batch}, "bias": {}} if dynamic else None
    program = torch.export.export(
        Both(), (torch.ones(4, 3),), {"bias": torch.ones(3)}, dynamic_shapes=shapes
    )
    torch.export.save(program, path)
    return str(path)


def test_a_pt2_file_brings_its_inputs(tmp_path: Path) -> None:
    """Nobody should have to write them down a second time."""
    model = load_model(save(tmp_path / "fixed.pt2", dynamic=False))
    assert torch.equal(model.module(*model.args, **model.kwargs), torch.full((4, 3), 3.0))
    assert model.dynamic_shapes is None


def test_a_pt2_file_brings_its_ranges(tmp_path: Path) -> None:
    """Exported for batches of 2 to 16, an engine for a batch of 4 alone would be a surprise."""
    model = load_model(save(tmp_path / "dynamic.pt2", dynamic=True))
    assert model.dynamic_shapes == {"0": {0: (2, 16)}, "bias": None}
