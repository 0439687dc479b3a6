"""What rules ask of a value is answered in steps that grow with the ops before it, not the ways."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from singlecard.capture.program import Program
from singlecard.passes.intervals import interval_of
from singlecard.passes.visible_rows import largest_of_rows
from singlecard.precision.bounds import bound_of
from tests.graphs import program_of

QUESTIONS = {
    "interval_of": interval_of,
    "largest_of_rows": largest_of_rows,
    "bound_of": bound_of,
}


def tower(count: int) -> Program:
    """A value that is added to itself so many times: 2^count ways lead to its source."""

    def model(x: torch.Tensor) -> torch.Tensor:
        for _ in range(count):
            x = x + x
        return x

    return program_of(model, torch.ones(2, 3))


def calls_of(ask: Callable[..., Any], program: Program) -> int:
    """Count the Python functions that answering takes."""
    value = program.outputs[0]
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        ask(program, value)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("name", QUESTIONS)
def test_twice_the_ops_take_about_twice_the_steps(name: str) -> None:
    """Sixteen residual additions took millions of steps: a deep model would not compile."""
    few, more = (calls_of(QUESTIONS[name], tower(count)) for count in (5, 10))
    assert 0 < few < more < 5 * few, (few, more)
