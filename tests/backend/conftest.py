"""What the tests of the backend share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from singlecard.warning import warn_once
from tests.backend.machine import Machine


@pytest.fixture(autouse=True)
def fresh_warnings() -> None:
    """What was said once is remembered; a test must not depend on the one before."""
    warn_once.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with torch.no_grad():
        yield Machine(tmp_path / "cache", monkeypatch)
