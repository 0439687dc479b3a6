"""Passes are checked by what they do, in every test of them."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def checked_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINGLECARD_CHECK", "passes")
