"""Calibration goes into an artifact with the engines that were built from it."""

from __future__ import annotations

import torch

import singlecard
from tests.artifact.machine import Machine
from tests.artifact.models import Attending


def test_the_table_comes_along(machine: Machine) -> None:
    """Names of ops that differ between captures would refuse every table."""
    model = Attending().eval()
    data = [torch.randn(2, 5, 16) for _ in range(4)]
    table = singlecard.calibrate(model, data)
    machine.export(model, data[0], options={"precision": "int8", "calibration": table})
    loaded = machine.load()
    assert loaded.calibration is not None and loaded.calibration.to_dict() == table.to_dict()
    got, want = loaded(data[1]), model(data[1])
    assert torch.linalg.vector_norm(got - want) < 0.1 * torch.linalg.vector_norm(want)
