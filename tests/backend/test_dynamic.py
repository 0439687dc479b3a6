"""One engine serves the shapes of its range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel

import singlecard
from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.report.verify import compare
from singlecard.session import Session

SHAPES = ((2, 16), (3, 17), (8, 64), (5, 33), (2, 2))


def small_bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=128,
        vocab_size=100,
    )
    return BertModel(config).eval()


def test_one_engine_serves_batches_and_lengths() -> None:
    """Each new batch size or sentence length would be built, or answered by a wrong engine."""
    model = small_bert()
    session = Session(Options.parse({"targets": "sm89"}), "reference", True)

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(session, graph, examples)

    compiled = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for batch, length in SHAPES:
            words = torch.randint(0, 100, (batch, length))
            mask = torch.ones(batch, length, dtype=torch.long)
            mask[:, length // 2 + 1 :] = 0
            result = compare(
                compiled(words, attention_mask=mask)[0], model(words, attention_mask=mask)[0]
            )
            assert result.mismatch is None
            assert result.relative_l2 < 1e-5
    assert len(session.graphs) == 1
    assert session.graphs[0].fallback == []
    assert len(session.graphs[0].engines) == 1


def test_ranges_reach_the_profile_of_a_convolution() -> None:
    """A CNN built for batches up to 64 would not take the 33rd image."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    ).eval()
    report = singlecard.verify(
        model, (torch.randn(4, 3, 32, 32),), dynamic_shapes=({0: (2, 64), 2: (16, 48)},)
    )
    assert (report.coverage, report.engines) == (1.0, 1)
    assert report.relative_l2 < 1e-5
    (image,) = [tensor for tensor in report.plans[0].network_tensors if tensor.is_input]
    smallest, _, largest = image.ranges[0]
    assert (smallest[0], largest[0]) == (2, 64)
    assert (smallest[2], largest[2]) == (16, 48)
