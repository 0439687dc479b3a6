"""Least times, on numbers that can be checked in the head."""

from __future__ import annotations

import pytest

from singlecard.engine.cards import Card
from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.engine.roofline import roofline

#: Moves a byte a nanosecond; multiplies ten times as fast in Half, twice as fast in TF32.
CARD = Card("test", "sm86", 10**9, 1e9, {"Float": 1e9, "TF32": 2e9, "Half": 1e10})


def kernel(moved: int | None, arithmetic: str | None = None, flops: int | None = None) -> Kernel:
    return Kernel("k", "gemm", (), (), (), (), (), False, arithmetic, flops, moved, 0)


def plan(*kernels: Kernel) -> PlanReport:
    return PlanReport(kernels, (), (), 0, 0, 0, 0)


def test_each_kernel_takes_its_longer_time() -> None:
    """Else a kernel bound by arithmetic hides behind another bound by memory."""
    bound = roofline(plan(kernel(1000, "Half", 50_000), kernel(9000, "Half", 100), kernel(7)), CARD)
    assert bound is not None
    assert bound.kernel_seconds == pytest.approx((5e-6, 9e-6, 7e-9))
    assert bound.seconds == pytest.approx(14.007e-6)
    assert (bound.bound_by_arithmetic, bound.unrated) == (1, 0)


def test_tf32_counts_only_where_it_was_asked_for() -> None:
    """Else an FP32 engine is promised twice the speed that it can have."""
    products = plan(kernel(10, "Float", 4000))
    plain, rounded = roofline(products, CARD), roofline(products, CARD, tf32=True)
    assert plain is not None and rounded is not None
    assert (plain.seconds, rounded.seconds) == pytest.approx((4e-6, 2e-6))


def test_a_type_without_a_rate_is_told() -> None:
    """Else a guess passes for a bound."""
    bound = roofline(plan(kernel(10, "FP8", 4000), kernel(10, "Half", None)), CARD)
    assert bound is not None
    assert (bound.seconds, bound.unrated) == (pytest.approx(20e-9), 2)


def test_unknown_sizes_have_no_time() -> None:
    """Else a plan with dynamic shapes takes no time at all."""
    assert roofline(plan(kernel(10), kernel(None)), CARD) is None
