"""The product of a mixture of experts."""

from __future__ import annotations

import pytest
import torch

from singlecard.capture import ops
from tests.lowering.check import check, weight


@pytest.mark.parametrize("rows", (3, 9))
@pytest.mark.parametrize("last", (3, 2), ids=("all rows", "rows behind the last group"))
def test_rows_meet_their_experts(rows: int, last: int) -> None:
    """A token sent to the wrong expert gives fluent nonsense. An expert may have no token."""
    ends = torch.tensor([1, 1, last], dtype=torch.int32)
    if rows > 3:
        ends[-1] = rows if last == 3 else rows - 2
    check(ops.grouped_mm, torch.randn(rows, 4), weight(3, 4, 5), ends, build=True)
