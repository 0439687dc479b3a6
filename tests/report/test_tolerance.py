"""The default limit of ``singlecard verify``: what the precision, or the model itself, can keep."""

from __future__ import annotations

import pytest
import torch

from singlecard.report.tolerance import usual_tolerance


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 1e-5), ("tf32", 5e-3), ("fp16", 5e-3), ("bf16", 4e-2)]
)
def test_each_precision_has_one(precision: str, limit: float) -> None:
    """A looser one would let a lost bias pass, a tighter one fail what is right."""
    assert usual_tolerance(precision, torch.ones(2)) == limit


def test_a_low_precision_output_widens_it() -> None:
    """A model in BF16 is no better than BF16, whatever ``--precision`` says."""
    outputs = {"a": torch.ones(2), "b": [torch.ones(2, dtype=torch.bfloat16)]}
    assert usual_tolerance("fp32", outputs) == 4e-2
    assert usual_tolerance("fp32", (torch.ones(2, dtype=torch.int64), None, 3)) == 1e-5
