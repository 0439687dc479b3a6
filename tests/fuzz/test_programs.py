"""Generated programs answer as eager PyTorch does; `make fuzz` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.campaign import Kinds, run_number

#: Numbers of programs of series 0, in groups so that one that fails hides few others.
GROUPS = [range(start, start + 8) for start in range(0, 32, 8)]


@pytest.mark.parametrize("numbers", GROUPS, ids=lambda numbers: str(numbers.start))
def test_programs_answer_as_eager_does(numbers: range, tmp_path: Path) -> None:
    """A combination of ops that nobody thought of would be wrong, raise, or lose its engine."""
    kinds = Kinds(tmp_path)
    records = [record for n in numbers if (record := run_number(0, n, kinds, seconds=20.0))]
    assert not [kind.text for _, kind in kinds]
    assert sum(record.evaluations > 0 for record in records) >= len(records) // 2
