"""What the tests of artifacts share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.artifact.machine import Machine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.delenv("SINGLECARD_SIGNING_KEY", raising=False)
    with torch.no_grad():
        yield Machine(tmp_path, monkeypatch)
