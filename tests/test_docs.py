"""What the documentation shows is what happens."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/artifacts.md",
        "docs/calibration.md",
        "docs/errors.md",
        "docs/memory.md",
        "docs/observing.md",
        "docs/quantization.md",
        "docs/sharing.md",
        "docs/quantized_models.md",
    ],
)
def test_snippets_of_the_pages_run(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who copies a snippet would get something else than the page shows."""
    monkeypatch.setenv("SINGLECARD_CACHE", str(tmp_path / "engines"))
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    assert result.attempted > 0
    assert result.failed == 0
