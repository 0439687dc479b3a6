"""Functions that TensorRT has no layers for, against float64, at their seams and poles."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tests.lowering.check import check, run

ODD = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 2.0, -1.0, -3.0, 1e-30, 1e30])

#: Functions, where they are looked at, and the size below which errors are absolute: next to zero
#: crossings the last digits of the arguments themselves decide.
SERIES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[float, float], float]] = {
    "lgamma, positive": (torch.lgamma, (1e-6, 40.0), 0.0),
    "lgamma, negative": (torch.lgamma, (-10.0, 0.0), 1.0),
    "digamma, positive": (torch.digamma, (1.6, 40.0), 0.0),
    "digamma, negative": (torch.digamma, (-10.0, 1.6), 1.0),
    "i0": (torch.i0, (-80.0, 80.0), 0.0),
    "i0e": (torch.special.i0e, (-80.0, 80.0), 0.0),
    "i1": (torch.special.i1, (-80.0, 80.0), 0.0),
    "i1e": (torch.special.i1e, (-80.0, 80.0), 0.0),
    "ndtri": (torch.special.ndtri, (0.0, 1.0), 1e-2),
}


@pytest.mark.parametrize("name", SERIES)
def test_series(name: str) -> None:
    """A likelihood off in the fifth digit is a wrong gradient-free fit."""
    function, (low, high), floor = SERIES[name]
    x = torch.cat([ODD, torch.linspace(low, high, 4003)])
    exact = function(x.double())

    kept: list[torch.Tensor] = []
    found = run(function, x, keep=kept)
    assert not found.graph.fallback, found.reasons
    got = kept[0]

    def error(y: torch.Tensor) -> torch.Tensor:
        return (y.double() - exact).abs() / (exact.abs() + floor)

    seen = error(got)[exact.float().isfinite()]
    assert seen[~seen.isnan()].max() <= 1e-5
    assert torch.equal(got.isnan(), exact.isnan())
    infinite = exact.float().isinf()
    assert torch.equal(got[infinite], exact.float()[infinite])


FLOATS = torch.cat(
    [ODD, 2.0 ** torch.arange(-126, 128), torch.logspace(-37, 38, 300), -torch.logspace(-4, 4, 50)]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_exponents_and_digits_are_exact(dtype: torch.dtype) -> None:
    check(torch.frexp, FLOATS.to(dtype), build=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("target", [math.inf, -math.inf, 0.0, 1.0, math.nan])
def test_neighbours_are_exact(target: float, dtype: torch.dtype) -> None:
    """One unit too far is another bucket of a histogram."""
    x = FLOATS.to(dtype)
    check(torch.nextafter, x, torch.full_like(x, target), tolerance=0.0)
