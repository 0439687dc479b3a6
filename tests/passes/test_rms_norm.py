"""RMSNorm is recognized where it is one, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from singlecard.capture import ops
from tests.graphs import fired, simplified, targets


def rms(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize(
    "norm",
    [
        rms,
        lambda x: torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * x,
        lambda x: x * torch.rsqrt(x.pow(2).mean(x.ndim - 1, keepdim=True) + 1e-6),
    ],
)
def test_is_recognized(norm: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Unrecognized, its squares overflow in FP16: a language model answers with NaN."""
    program = simplified(norm, torch.randn(2, 8))
    assert targets(program) == ["singlecard.rms_norm.default"]


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-6),
        lambda x: (x + 1) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x[0] * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[0],
        lambda x: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 0.5, alpha=3)),
        lambda x: x * torch.rsqrt(x.pow(2).mean((0, 1), keepdim=True) + 1e-6),
        lambda x: x * torch.rsqrt((x * (x + 1)).mean(-1, keepdim=True).abs() + 1e-6),
        lambda x: x.half() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    ],
)
def test_near_miss_is_left(norm: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Another axis, another power, another numerator: taken for RMSNorm, a model is just wrong."""
    program = simplified(norm, torch.randn(4, 4))
    assert "fuse_rms_norm" not in fired(program)


def test_float64_keeps_its_precision() -> None:
    """A float64 model is run for its digits; statistics in FP32 would lose half of them."""
    x = torch.randn(2, 64, dtype=torch.float64)
    torch.testing.assert_close(ops.rms_norm(x, None, 1e-6), rms(x), rtol=1e-12, atol=0)
