"""Ops that some cards cannot compute in some types."""

from __future__ import annotations

import torch

import singlecard


def test_bf16_of_the_model_itself_on_a_card_without() -> None:
    """TensorRT would refuse the whole engine for one BF16 tensor, the FP32 parts with it."""

    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.float() * 2) + torch.sin(y).exp()

    inputs = (torch.randn(2, 8).bfloat16(), torch.randn(2, 8))
    before = singlecard.counters()
    options = {"targets": "sm75", "min_block_size": 1}
    report = singlecard.verify(model, inputs, options=options)
    assert report.relative_l2 < 1e-5
    assert report.engines == 1
    (fallback,) = report.fallback
    assert "has bf16 elements: bf16 is not available on target sm75" in fallback[1]
    assert (singlecard.counters() - before).build_failures == 0
