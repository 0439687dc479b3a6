"""Boundaries of conditionals that hand a value on, and assertions.

Which branch runs, and how often a loop does, is decided by ``execution``.
"""

from __future__ import annotations

from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.table import Call, evaluates


@evaluates("CONDITIONAL_INPUT", widens=False)
def conditional_input(call: Call) -> Tensor:
    return call[0]


@evaluates("ASSERTION", widens=False)
def assertion(call: Call) -> None:
    if not bool(call[0].all()):
        raise EvaluationError(f"the assertion does not hold: {call.text('message')}")
