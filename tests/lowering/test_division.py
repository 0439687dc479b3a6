"""Division and its remainders, where a rounded quotient is not the quotient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.lowering.check import check

inf, nan = float("inf"), float("nan")


def floor_divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y, rounding_mode="floor")


@pytest.mark.parametrize("function", (torch.fmod, torch.remainder, floor_divide))
@pytest.mark.parametrize("kind", (torch.float32, torch.float16), ids=str)
def test_a_quotient_that_rounds_to_the_next_integer(
    function: Callable[..., torch.Tensor], kind: torch.dtype
) -> None:
    """1 / 0.1 rounds to 10, but 0.1 goes into 1 only 9 times: a phase would jump by a turn."""
    x = torch.tensor([1.0, -1.0, 5.0, 7.3, -0.3, 6.0, 100.0, 1e4, 0.0], dtype=kind)
    y = torch.tensor([0.1, 0.1, -0.1, 0.7, 0.1, -3.0, 0.3, 0.1, 2.0], dtype=kind)
    check(function, x, y, build=kind == torch.float32)


@pytest.mark.parametrize("function", (torch.fmod, torch.remainder))
def test_remainders_of_what_has_no_bounds(function: Callable[..., torch.Tensor]) -> None:
    """A number modulo infinity is itself; NaN there would spread through the model."""
    x = torch.tensor([1.0, -1.0, 1.0, -1.0, inf, 0.0, 3.0, nan, 2e38, 1e9])
    y = torch.tensor([inf, inf, -inf, -inf, 2.0, inf, 0.0, 1.0, 1.5e38, 0.1])
    check(function, x, y)


def test_floored_quotients_of_infinities() -> None:
    """Division by zero and by infinity have answers of their own."""
    x = torch.tensor([1.0, -1.0, 1.0, 0.0, -3.0, inf])
    y = torch.tensor([inf, inf, 0.0, 0.0, 0.0, 2.0])
    check(floor_divide, x, y)


def test_remainders_of_integers() -> None:
    """Python's rule and C's differ for negative numbers."""
    x, y = torch.tensor([7, -7, 7, -7, 2**40]), torch.tensor([3, 3, -3, -3, 1000])
    check(lambda x, y: (x % y, torch.fmod(x, y), x // y), x, y, build=True)
