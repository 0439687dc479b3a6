"""One engine serves the shapes of its range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

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


def compiled_with(
    model: Callable[..., Any], dynamic: bool | None, **options: Any
) -> tuple[Callable[..., Any], Session]:
    torch._dynamo.reset()
    session = Session(Options.parse(options), "reference", bool(options.get("targets")))

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(session, graph, examples)

    return torch.compile(model, backend=backend, dynamic=dynamic), session


def profile_of(session: Session) -> list[tuple[tuple[int, ...], ...]]:
    (graph,) = session.graphs
    (engine,) = graph.engines
    inputs = [tensor for tensor in engine.report.network_tensors if tensor.is_input]
    return [tensor.ranges[0] for tensor in inputs if tensor.ranges]


@torch.no_grad()
def test_options_name_the_range_of_an_axis() -> None:
    """Without them an engine takes lengths that never come, and scratch memory for them."""
    model = small_bert()
    profiles = {"input_ids": {0: (1, 4, 8), 1: (4, 32, 64)}}
    compiled, session = compiled_with(model, True, targets="sm89", profiles=profiles)
    words = torch.randint(0, 100, (3, 17))
    result = compare(compiled(input_ids=words)[0], model(words)[0])
    assert result.mismatch is None and result.relative_l2 < 1e-5
    (words_range,) = profile_of(session)
    assert words_range == ((1, 4), (4, 32), (8, 64))


@torch.no_grad()
def test_call_outside_of_the_range_is_right_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A rare long sentence must be answered, and the log must not fill with it."""
    model = small_bert()
    profiles = {"input_ids": {0: (1, 2, 4), 1: (2, 16, 32)}}
    compiled, session = compiled_with(model, True, profiles=profiles)
    with caplog.at_level("WARNING", "singlecard"):
        for batch, length in ((2, 8), (5, 8), (3, 40), (2, 33), (4, 32)):
            words = torch.randint(0, 100, (batch, length))
            result = compare(compiled(input_ids=words)[0], model(words)[0])
            assert result.mismatch is None and result.relative_l2 < 1e-5
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "has 5, the engine was built for 1 to 4" in told[0]
    assert len(session.graphs) == 1


@torch.no_grad()
def test_example_outside_of_its_range_is_right(caplog: pytest.LogCaptureFixture) -> None:
    """The first call chooses no range: calls inside of the given one are the engine's."""
    profiles = {0: {0: (8, 16, 32)}}
    compiled, session = compiled_with(nn.Linear(4, 4), True, targets="sm89", profiles=profiles)
    with caplog.at_level("WARNING", "singlecard"):
        assert compiled(torch.ones(3, 4)).shape == (3, 4)
    assert "built for 8 to 32" in caplog.text
    assert profile_of(session) == [((8, 4), (16, 4), (32, 4))]


@pytest.mark.parametrize(
    ("profiles", "dynamic", "words"),
    [
        ({"inptu": {0: (1, 2, 3)}}, True, "there are 0"),
        ({0: {7: (1, 2, 3)}}, True, "none of them is 7"),
        ({0: {0: (1, 2, 3)}}, False, "does not vary"),
    ],
)
@torch.no_grad()
def test_profile_that_fits_nothing_is_told(
    profiles: Any, dynamic: bool, words: str, recwarn: pytest.WarningsRecorder
) -> None:
    """A misspelt input leaves the engine with a range that nobody meant."""
    compiled, _ = compiled_with(nn.Linear(4, 4), dynamic, profiles=profiles)
    compiled(torch.ones(2, 4))
    assert any(words in str(item.message) for item in recwarn)


@torch.no_grad()
def test_profile_of_an_input_in_a_container() -> None:
    """Models take batches as dictionaries."""

    def model(batch: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        return batch["images"][0] * 2

    compiled, session = compiled_with(
        model, True, targets="sm89", profiles={"batch.images.0": {0: (1, 2, 7)}}
    )
    compiled({"images": [torch.ones(3, 4)]})
    smallest, usual, largest = profile_of(session)[0]
    assert (smallest[0], usual[0], largest[0]) == (1, 2, 7)


@torch.no_grad()
def test_examples_of_any_size_find_the_same_engine() -> None:
    """Keyed by its example, a model would be built anew for each first sentence."""
    digests, model = set(), nn.Linear(4, 4)
    for length in (5, 900):
        compiled, session = compiled_with(model, True, targets="sm89")
        compiled(torch.ones(length, 4))
        digests.add(session.graphs[0].engines[0].digest)
    assert len(digests) == 1


class PaddedByBuffer(nn.Module):
    """Reads a number from a buffer, as Encodec does for the sizes of its padding."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Buffer(torch.tensor(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = self.step.item()
        torch._check(step >= 0)
        torch._check(step < 5)
        return torch.nn.functional.pad(x, (step, 0)) * 2


def test_number_from_a_buffer_is_a_size() -> None:
    """With scalars captured, sizes may follow from frozen buffers: a call must not raise."""
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        report = singlecard.verify(PaddedByBuffer(), (torch.randn(1, 3, 8),))
    assert report.mismatch is None
    assert report.relative_l2 == 0


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return ResNetForImageClassification(config).eval()


def small_llama() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=100,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def images(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 3, size, size + 8)


def words(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 100, (batch, length))


@pytest.mark.parametrize(
    ("model", "inputs", "sizes"),
    [
        (small_resnet, images, range(32, 72, 7)),
        (small_bert, words, range(3, 41, 6)),
        (small_llama, words, range(3, 41, 6)),
    ],
    ids=["cnn", "encoder", "decoder"],
)
@torch.no_grad()
def test_one_engine_is_right_over_its_whole_range(
    model: Callable[[], nn.Module],
    inputs: Callable[[int, int], torch.Tensor],
    sizes: range,
) -> None:
    """An engine that is right for its example alone is wrong for every other customer."""
    module = model()
    compiled, session = compiled_with(module, True, targets="sm89", precision="fp32")
    for place, size in enumerate((*sizes, sizes[0], sizes[-1])):
        x = inputs(2 + place % 4, size)
        result = compare(compiled(x)[0], module(x)[0])
        assert result.mismatch is None and result.relative_l2 < 1e-5
    (graph,) = session.graphs
    assert graph.fallback == [] and len(graph.engines) == 1


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = 0.5

    def forward(self, x: torch.Tensor, given: float) -> torch.Tensor:
        return x * self.factor + x.pow(2).mean(-1, keepdim=True) * given


@torch.no_grad()
def test_numbers_of_a_module_are_constants_that_are_watched() -> None:
    """With dynamic=True each epsilon of a decoder would stand between it and its engine."""
    model, x = Scaled(), torch.randn(3, 4)
    compiled, session = compiled_with(model, True, min_block_size=1)
    torch.testing.assert_close(compiled(x, 2.5), model(x, 2.5))
    (graph,) = session.graphs
    names = {node.name for segment in graph.partition.segments for node in segment.inputs}
    assert len(names) <= 3  # x, and what the caller gave
    model.factor = 0.25
    torch.testing.assert_close(compiled(x, 3.5), model(x, 3.5))
    torch.testing.assert_close(compiled(x, 4.5), model(x, 4.5))
    assert len(session.graphs) == 2
