"""What the tests of engines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from singlecard.engine.cache import Cache
from tests.engine.stores import filled


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache with the entries A and B."""
    return filled(tmp_path / "cache")
