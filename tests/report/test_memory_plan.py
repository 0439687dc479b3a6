"""A plan for a card: what it says of an engine is what that engine then takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, StaticCache

import singlecard
from singlecard.engine.cards import find_card
from singlecard.errors import OptionError
from singlecard.report.card_memory import memory_of_card
from singlecard.report.memory_plan import plan_memory
from singlecard.report.memory_rows import LINK, MemoryPlan
from singlecard.report.verify import compile_model

Example = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

LLAMA = LlamaConfig(
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    vocab_size=100,
)


@pytest.fixture(autouse=True)
def no_memory_of_other_tests() -> None:
    torch._dynamo.reset()


def cnn(batch: int) -> Example:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2))
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return module.eval(), (torch.ones(batch, 3, 64, 64),), {}


def mlp(batch: int) -> Example:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    return module.eval(), (torch.ones(batch, 256),), {}


def bert(batch: int) -> Example:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        vocab_size=100,
    )
    words = torch.arange(batch * 32).reshape(batch, 32) % 100
    return BertModel(config).eval(), (), {"input_ids": words}


def decoder(batch: int, places: int = 32) -> Example:
    """One step of a decoder, whose cache exists already."""
    torch.manual_seed(0)
    cache = StaticCache(config=LLAMA, max_cache_len=places)
    cache.early_initialization(batch, 2, 16, torch.float16, torch.device("cpu"))
    given = {"input_ids": torch.full((batch, 1), 7), "past_key_values": cache}
    return LlamaForCausalLM(LLAMA).eval().half(), (), given


def plan(example: Example, card: str | int = "12GiB", **given: Any) -> MemoryPlan:
    module, args, kwargs = example
    options = {"targets": "sm89", "min_block_size": 1, **given.pop("options", {})}
    return plan_memory(module, args, kwargs, card=card, options=options, **given)


def near(one: int, other: int) -> bool:
    return abs(one - other) <= 0.05 * other


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (cnn, 1),
        (cnn, 8),
        (bert, 8),
        (decoder, 8),
        pytest.param(bert, 1, marks=pytest.mark.slow),
        pytest.param(decoder, 1, marks=pytest.mark.slow),
    ],
)
def test_the_built_engine_takes_what_was_planned(
    make: Callable[[int], Example], batch: int, tmp_path: Path
) -> None:
    """A plan that is wrong is found out on the card, after the card was bought."""
    planned = plan(make(2), batches=[batch], precisions=["fp16"], options={"cache_dir": tmp_path})
    (row,) = planned.recommended
    module, args, kwargs = make(batch)
    options = {"precision": row.precision, "targets": "sm89", "min_block_size": 1}
    built = compile_model(
        module, args, kwargs, None, {**options, "cache_dir": tmp_path}, "eager", None
    )
    (engine,) = built.engines
    assert near(row.weights_bytes, engine.report.weights_bytes)
    assert near(row.scratch_bytes, engine.report.scratch_bytes)
    assert row.footprint is not None
    assert near(row.footprint.engine_bytes, engine.plan.stat().st_size)


@pytest.mark.parametrize("precision", ["int8-weight", "int4-weight"])
def test_so_it_does_with_small_weights(precision: str, tmp_path: Path) -> None:
    """These are chosen for their size alone."""
    options = {"cache_dir": tmp_path}
    planned = plan(mlp(1), batches=[4], precisions=[precision], options=options)
    module, args, kwargs = mlp(4)
    chosen = {"precision": precision, "targets": "sm89", **options}
    (engine,) = compile_model(module, args, kwargs, None, chosen, "eager", None).engines
    (row,) = planned.rows
    assert near(row.weights_bytes, engine.report.weights_bytes)
    assert near(row.scratch_bytes, engine.report.scratch_bytes)


def test_what_does_not_fit_is_streamed_as_little_as_needed(tmp_path: Path) -> None:
    """Each byte that is streamed is waited for at each call."""
    options = {"cache_dir": tmp_path}
    whole = plan(mlp(1), batches=[1], precisions=["fp16"], reserve=0, options=options).rows[0]
    card = whole.needs_bytes - whole.weights_bytes // 3
    tight = plan(mlp(1), card, batches=[1], precisions=["fp16", "fp32"], reserve=0, options=options)
    assert not tight.rows[0].fits and tight.rows[0].share == 1
    (row,) = tight.recommended
    assert (row.precision, row.share) == ("fp16", 0.5)
    assert row.memory_budget == whole.weights_bytes // 2
    assert row.streamed_bytes == whole.weights_bytes - row.memory_budget
    assert row.stream_seconds == pytest.approx(row.streamed_bytes / LINK)
    text = " ".join(str(tight).split())  # a narrow terminal folds notes
    assert f"memory_budget={row.memory_budget}" in text
    assert "only a card tells" in text and "assumed" in text
    module, args, kwargs = mlp(1)
    chosen = {"precision": "fp16", "memory_budget": row.memory_budget, "targets": "sm89"}
    (engine,) = compile_model(
        module, args, kwargs, None, {**chosen, **options}, "eager", None
    ).engines
    assert near(row.weights_bytes, engine.report.weights_bytes)
    assert near(row.scratch_bytes, engine.report.scratch_bytes)


def test_nothing_fits_where_scratch_alone_is_too_large() -> None:
    """Streaming makes only weights smaller: to offer it here would cost an afternoon."""
    planned = plan(cnn(1), 10**6, batches=[1], precisions=["fp16"], reserve=0)
    assert not planned.fits and planned.recommended == ()
    assert [row.share for row in planned.rows] == [1]
    assert "Nothing fits" in str(planned)


def test_precisions_are_recommended_in_their_order() -> None:
    """Who has room for FP16 need not round weights."""
    planned = plan(cnn(1), batches=[1, 2], precisions=["fp16", "int8-weight"])
    assert [(row.precision, row.batch) for row in planned.recommended] == [("fp16", 1), ("fp16", 2)]
    assert len(planned.rows) == 4


@pytest.mark.parametrize(("batch", "places"), [(1, 32), (3, 64)])
def test_caches_grow_with_batch_and_length(batch: int, places: int) -> None:
    """For long texts the cache is larger than the model."""
    planned = plan(decoder(2), batches=[batch], lengths=[places], precisions=["fp16"])
    (row,) = planned.rows
    assert planned.cache == "inputs"
    assert row.cache_bytes == 2 * 2 * batch * 2 * places * 16 * 2  # k, v; layers; ...; FP16
    assert row.footprint is not None
    assert row.footprint.cache_shapes == ((batch, 2, places, 16),) * 4
    assert row.tensor_bytes < row.cache_bytes  # the cache is not counted again
    assert row.needs_bytes >= row.weights_bytes + row.scratch_bytes + row.cache_bytes


def test_a_new_cache_is_found_too() -> None:
    """Everyone passes a StaticCache that has not been used: it holds no tensors yet."""
    module, args, kwargs = decoder(1)
    kwargs["past_key_values"] = StaticCache(config=LLAMA, max_cache_len=32)
    (row,) = plan((module, args, kwargs), batches=[2], precisions=["fp16"]).rows
    assert row.cache_bytes == 2 * 2 * 2 * 2 * 32 * 16 * 2
    assert not kwargs["past_key_values"].layers[0].is_initialized


def test_without_a_cache_it_is_worked_out_from_the_config() -> None:
    """A model that is shown reading a prompt will generate: its cache must have room."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**LLAMA.to_dict(), "use_cache": False})
    example = LlamaForCausalLM(config).eval(), (), {"input_ids": torch.arange(16)[None]}
    planned = plan(example, batches=[2], lengths=[24], precisions=["fp16"])
    (row,) = planned.rows
    cache = StaticCache(config=LLAMA, max_cache_len=24)
    cache.early_initialization(2, 2, 16, torch.float32, torch.device("cpu"))
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    assert row.cache_bytes == sum(tensor.nbytes for tensor in tensors)
    assert planned.cache == "config" and "config" in str(planned)


def test_other_models_have_no_cache_column() -> None:
    """An encoder that is charged for a cache looks larger than it is."""
    planned = plan(bert(1), batches=[1], precisions=["fp16"])
    assert planned.rows[0].cache_bytes is None and planned.cache == ""
    assert "cache" not in str(planned)
    assert planned.rows[0].length == 32


def test_examples_are_left_alone() -> None:
    """The caller goes on working with them."""
    module, args, kwargs = decoder(1)
    cache = kwargs["past_key_values"]
    plan((module, args, kwargs), batches=[2], precisions=["fp16"])
    assert cache.layers[0].keys.shape == (1, 2, 32, 16)
    assert not cache.layers[0].keys.any() and int(cache.get_seq_length()) == 0


def test_sizes_are_remembered(tmp_path: Path) -> None:
    """Asking for another card must not build everything again."""
    given: dict[str, Any] = {"precisions": ["fp16"], "batches": [1, 2]}
    first = plan(cnn(1), options={"cache_dir": tmp_path}, **given)
    second = plan(cnn(1), "8GB", options={"cache_dir": tmp_path}, **given)
    built = [
        [row.footprint.built for row in each.rows if row.footprint] for each in (first, second)
    ]
    assert built == [[1, 1], [0, 0]]
    assert [row.scratch_bytes for row in first.rows] == [row.scratch_bytes for row in second.rows]


def test_without_batches_that_of_the_examples_is_planned_too() -> None:
    """A model that takes one batch only would have no row at all."""
    planned = plan((Reshaped(), (torch.ones(2, 2),), {}), precisions=["fp16"])
    assert [(row.batch, row.fits) for row in planned.rows] == [(1, False), (2, True), (8, True)]
    module = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)))
    assert [row.batch for row in plan((module, (torch.ones(3, 4),), {})).recommended] == [1, 3, 8]


class Reshaped(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).reshape(2, -1, 2) * 2


def test_a_size_that_the_model_refuses_is_told_in_its_words() -> None:
    """One impossible batch must not hide the others."""
    planned = plan((Reshaped(), (torch.ones(2, 2),), {}), batches=[2, 3], precisions=["fp16"])
    good, bad = planned.rows
    assert good.fits and not bad.fits
    assert "batch 3: the model does not take it (RuntimeError: shape '[2, -1, 2]'" in bad.problem
    assert bad.problem in " ".join(str(planned).split())


def test_a_card_without_a_type_has_no_plan_for_it() -> None:
    """A T4 has no INT4: to recommend it would end in an engine that does not load."""
    planned = plan_memory(*mlp(1), card="T4", batches=[1], precisions=["fp16", "int4-weight"])
    assert planned.card_bytes == 16 * 10**9
    good, bad = planned.rows
    assert good.recommended and "sm75" in bad.problem and not bad.fits


def test_a_range_is_planned_as_one_engine() -> None:
    """An engine for many sizes has scratch for its largest."""
    module, args, _ = cnn(4)
    shapes = ({0: (2, 16)},)
    (row,) = plan((module, args, {}), dynamic_shapes=shapes, precisions=["fp16"]).rows
    options = {"precision": "fp16", "targets": "sm89", "min_block_size": 1}
    (engine,) = compile_model(module, args, None, shapes, options, "eager", None).engines
    assert engine.report.profiles == 1 and engine.report.is_dynamic
    assert row.batch == 4 and near(row.scratch_bytes, engine.report.scratch_bytes)
    (fixed,) = plan((module, args, {}), batches=[4], precisions=["fp16"]).rows
    assert row.scratch_bytes > fixed.scratch_bytes and row.tensor_bytes == fixed.tensor_bytes


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(torch.relu(x)) + 1  # TensorRT has no Bessel function


def test_what_stays_in_pytorch_is_told() -> None:
    """Memory that is not counted is missed on the card."""
    planned = plan((Bessel(), (torch.ones(2, 4),), {}), batches=[2], precisions=["fp32"])
    (row,) = planned.rows
    assert row.footprint is not None and row.footprint.left_ops == 1
    assert len(row.footprint.plans) == 2
    assert "1 op stays in PyTorch" in str(planned)


def test_plain_values_hold_what_the_table_shows() -> None:
    """Programs choose by these."""
    planned = plan(cnn(1), batches=[1], precisions=["fp16"])
    document = planned.to_dict()
    (row,) = document["rows"]
    parts = ("weights_bytes", "scratch_bytes", "tensor_bytes")
    assert row["needs_bytes"] == sum(row[part] for part in parts) + document["reserve_bytes"]
    assert row["left_bytes"] == document["card_bytes"] - row["needs_bytes"]
    assert document["fits"] and row["recommended"] and row["memory_budget"] is None


@pytest.mark.parametrize(
    ("card", "size"),
    [
        ("12GiB", 12 * 2**30),
        ("24 GB", 24 * 10**9),
        (2**30, 2**30),
        ("rtx4070", 12 * 10**9),
        (find_card("L4"), 24 * 10**9),
    ],
)
def test_cards_are_sizes_or_names(card: Any, size: int) -> None:
    """People know a card by either."""
    assert memory_of_card(card)[1] == size


@pytest.mark.parametrize("card", ["RTX 407", "4090", "12GIBS", "", "0GB", -1, True, 1.5, None])
def test_other_cards_are_refused_before_the_work(card: Any) -> None:
    """A slip must not cost the minutes of a build."""
    with pytest.raises(OptionError, match=r"card .*12GiB"):
        plan_memory(*cnn(1), card=card)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precisions": []}, "no precision"),
        ({"precisions": ["int8"]}, "needs scales"),
        ({"precisions": ["fp17"]}, "fp17"),
        ({"batches": [0]}, "batches: got 0"),
        ({"lengths": ["8"]}, "lengths: got '8'"),
        ({"lengths": [8]}, "no example argument has a length"),
        ({"reserve": "much"}, "reserve 'much'"),
        ({"reserve": -1}, "reserve -1"),
        ({"options": {"precison": 1}}, "precison"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], said: str) -> None:
    """An error says which of many arguments it means."""
    with pytest.raises(OptionError, match=said):
        plan(cnn(1), **given)


def test_it_is_offered_by_the_package() -> None:
    """``singlecard.plan_memory`` is what the documentation shows."""
    assert singlecard.plan_memory is plan_memory
