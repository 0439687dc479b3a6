"""What became of an op: all its samples in all its types."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from tests.ops.harness import EAGER, LOWERED, RAISED, WRONG, Outcome, run_call
from tests.ops.relevant import dtypes_of
from tests.ops.samples import is_empty, samples_of


@dataclass(frozen=True)
class Measured:
    """The outcomes of an op's samples in one type."""

    dtype: torch.dtype
    outcomes: tuple[Outcome, ...]

    @property
    def state(self) -> str:
        """``lowered`` where all samples are, ``partly``, ``eager``; ``wrong`` and ``raised`` win."""
        states = [outcome.state for outcome in self.outcomes]
        for bad in (WRONG, RAISED):
            if bad in states:
                return bad
        if EAGER not in states:
            return LOWERED
        return "partly" if LOWERED in states else EAGER

    @property
    def reason(self) -> str:
        """The most frequent reason among the samples that decide the state."""
        deciding = self.state if self.state in (WRONG, RAISED) else EAGER
        reasons = Counter(item.reason for item in self.outcomes if item.state == deciding)
        return reasons.most_common(1)[0][0] if reasons else ""


def measure(op: Any, dtype: torch.dtype, *, build_first: bool = False) -> Measured:
    """Run the samples of an op in one type; ``build_first`` builds engines for the first of them."""
    outcomes = []
    for place, (args, kwargs) in enumerate(samples_of(op, dtype)):
        outcomes.append(run_call(op.op, args, kwargs, build=build_first and place == 0))
    return Measured(dtype, tuple(outcomes))


def measure_all(op: Any, *, build_first: bool = False) -> list[Measured]:
    return [measure(op, dtype, build_first=build_first) for dtype in dtypes_of(op)]


__all__ = ["Measured", "is_empty", "measure", "measure_all"]
