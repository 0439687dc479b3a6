"""``singlecard doctor``: the first thing that is asked for in a bug report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import singlecard.report.installation as installation
from singlecard.errors import FlavourError


def test_a_machine_that_builds_is_status_0(command: Any, tmp_path: Path) -> None:
    """The answer to "does it work here?", GPU or not; nothing is made by asking."""
    done = command("doctor", "--cache-dir", tmp_path / "cache", "--json")
    assert done.status == 0 and done.document["can_build"]
    values = {item["name"]: item["value"] for item in done.document["findings"]}
    assert "tensorrt" in values["TensorRT"] and "engine" in values["trial build"]
    assert str(tmp_path / "cache") in values["cache"]
    assert done.document["targets"]["sm89"] == dict.fromkeys(("fp32", "tf32", "fp16", "bf16"), True)
    assert not (tmp_path / "cache").exists()


def test_the_table_shows_cards_and_types(command: Any, tmp_path: Path) -> None:
    """Who buys a card wants to know whether it is served."""
    done = command("doctor", "--cache-dir", tmp_path)
    for words in ("sm120", "RTX 4090", "bf16", "Engines can be built"):
        assert words in done.out


def test_types_are_measured_not_believed(command: Any, tmp_path: Path) -> None:
    """No vendor's page says that TensorRT for RTX 1.7 has no FP32 products for Turing."""
    turing = command("doctor", "--cache-dir", tmp_path, "--json").document["targets"]["sm75"]
    assert turing == {"fp32": False, "tf32": False, "fp16": True, "bf16": False}


def test_missing_tensorrt_is_status_1_with_its_cure(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual fault of a new installation."""

    def missing() -> None:
        raise FlavourError("no TensorRT is installed: install it with 'pip install tensorrt-rtx'")

    monkeypatch.setattr(installation, "tensorrt", missing)
    done = command("doctor", "--cache-dir", tmp_path)
    assert done.status == 1
    assert "pip install tensorrt-rtx" in done.out and "Engines cannot be built" in done.out


def test_an_unusable_cache_is_status_1(command: Any, tmp_path: Path) -> None:
    """Every build would fail at its end."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "cache"):
        done = command("doctor", "--cache-dir", place, "--json")
        assert done.status == 1
        (cache,) = [item for item in done.document["findings"] if item["name"] == "cache"]
        assert cache["fine"] is False and str(place) in cache["value"]


def test_a_card_that_pytorch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU build of PyTorch beside a card is a common surprise."""
    answers = {
        "name,compute_cap,memory.total": ["NVIDIA GeForce RTX 4090, 8.9, 24564 MiB"],
        "driver_version": ["580.95"],
    }
    monkeypatch.setattr(installation, "_smi", answers.__getitem__)
    monkeypatch.setattr(installation, "_torch_sees_gpu", lambda: False)
    found = installation._gpu()
    assert found.value == "NVIDIA GeForce RTX 4090 (sm89, 24564 MiB), driver 580.95"
    assert "CUDA build of torch" in found.cure


def test_a_card_that_is_not_served_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT for RTX serves no H100."""
    answers = {
        "name,compute_cap,memory.total": ["NVIDIA H100 PCIe, 9.0, 81559 MiB"],
        "driver_version": ["580.95"],
    }
    monkeypatch.setattr(installation, "_smi", answers.__getitem__)
    monkeypatch.setattr(installation, "_torch_sees_gpu", lambda: True)
    found = installation._gpu()
    assert found.fine is None and "sm90 is not among sm75" in found.cure
