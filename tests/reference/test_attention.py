"""Attention, rotary embedding and KV-cache layers against formulas written out in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 4, 3, 5, 8


def tensors(kv_heads: int = HEADS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Query, key and value; keys are more than queries, as in decoding."""
    query = torch.randn(BATCH, HEADS, QUERIES, SIZE).to(dtype)
    key, value = (torch.randn(BATCH, kv_heads, KEYS, SIZE).to(dtype) for _ in range(2))
    return query, key, value


def attend(sketch: Any, query: Tensor, key: Tensor, value: Tensor, causal: str = "NONE") -> Any:
    trt = sketch.trt
    layer = sketch.add(
        "attention_v2",
        *(sketch.input(tensor) for tensor in (query, key, value)),
        trt.AttentionNormalizationOp.SOFTMAX,
        trt.CausalMaskKind.__members__[causal],
    )
    layer.decomposable = True
    return layer


def formula(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """One head after the other, without a scale."""
    group = query.shape[1] // key.shape[1]
    answers = []
    for head in range(query.shape[1]):
        scores = query[:, head].float() @ key[:, head // group].float().transpose(1, 2)
        if seen is not None:
            scores = scores.masked_fill(~seen.expand(BATCH, HEADS, -1, -1)[:, head], -torch.inf)
        answers.append(scores.softmax(-1) @ value[:, head // group].float())
    return torch.stack(answers, dim=1)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_heads_of_keys_serve_groups_of_queries(sketch: Any, kv_heads: int) -> None:
    """A model with grouped queries would attend to the wrong heads."""
    query, key, value = tensors(kv_heads)
    got = sketch.run(attend(sketch, query, key, value).get_output(0))
    torch.testing.assert_close(got, formula(query, key, value))


def test_queries_are_not_scaled(sketch: Any) -> None:
    """Attention scaled twice looks like attention, and answers nearly right."""
    query, key, value = tensors()
    got = sketch.run(attend(sketch, query, key, value).get_output(0))
    scaled = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    unscaled = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
    torch.testing.assert_close(got, unscaled)
    assert not torch.allclose(got, scaled)


def test_an_additive_mask_is_added_to_the_scores(sketch: Any) -> None:
    """Padding or a position bias would be ignored."""
    query, key, value = tensors()
    mask = torch.randn(BATCH, 1, QUERIES, KEYS)
    layer = attend(sketch, query, key, value)
    layer.mask = sketch.input(mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_boolean_mask_is_true_where_a_query_may_look(sketch: Any) -> None:
    """The mask turned round would show exactly what it should hide."""
    query, key, value = tensors()
    mask = torch.rand(1, HEADS, QUERIES, KEYS) > 0.4
    mask[..., 0] = True
    layer = attend(sketch, query, key, value)
    layer.mask = sketch.input(mask)
    expected = formula(query, key, value, mask)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_query_that_may_see_nothing_answers_zero(sketch: Any) -> None:
    """One padded row would turn the whole answer into NaN."""
    query, key, value = tensors()
    mask = torch.ones(1, 1, QUERIES, KEYS, dtype=torch.bool)
    mask[..., 1, :] = False
    layer = attend(sketch, query, key, value)
    layer.mask = sketch.input(mask)
    got = sketch.run(layer.get_output(0))
    assert not got[:, :, 1].any()
    torch.testing.assert_close(got[:, :, 0], formula(query, key, value)[:, :, 0])


@pytest.mark.parametrize(("causal", "offset"), [("UPPER_LEFT", 0), ("LOWER_RIGHT", KEYS - QUERIES)])
def test_causal_kinds_differ_when_keys_are_more_than_queries(
    sketch: Any, causal: str, offset: int
) -> None:
    """Decoding with a cache would look at the first tokens instead of all before."""
    query, key, value = tensors()
    seen = torch.ones(QUERIES, KEYS, dtype=torch.bool).tril(offset)
    got = sketch.run(attend(sketch, query, key, value, causal).get_output(0))
    torch.testing.assert_close(got, formula(query, key, value, seen))


def test_keys_beyond_the_length_of_a_sequence_are_not_seen(sketch: Any) -> None:
    """The unused end of a padded cache would take part in the answer."""
    query, key, value = tensors()
    layer = attend(sketch, query, key, value, "LOWER_RIGHT")
    lengths = torch.tensor([3, 5], dtype=torch.int32)
    layer.key_value_lengths = sketch.input(lengths)
    rows, columns = torch.arange(QUERIES)[:, None], torch.arange(KEYS)
    seen = torch.stack([columns <= rows + int(n) - QUERIES for n in lengths])[:, None]
    got = sketch.run(layer.get_output(0))
    torch.testing.assert_close(got, formula(query, key, value, seen))


def test_half_precision_rounds_once_at_the_end(sketch: Any) -> None:
    """FP16 answers would be worse offline than the engine's, which sums in FP32."""
    query, key, value = tensors(dtype=torch.float16)
    got = sketch.run(attend(sketch, query, key, value).get_output(0))
    assert torch.equal(got, formula(query, key, value).half())


def test_a_quantized_softmax_has_the_steps_of_its_scale(sketch: Any) -> None:
    """FP8 attention would be judged by weights that were never rounded."""
    query, key, value = tensors()
    layer = attend(sketch, query, key, value)
    scale = torch.tensor(1 / 448)
    layer.normalization_quantize_scale = sketch.constant(scale)
    layer.normalization_quantize_to_type = sketch.trt.fp8
    weights = (query @ key.transpose(2, 3)).softmax(-1)
    steps = (weights / scale).to(torch.float8_e4m3fn).float()
    torch.testing.assert_close(sketch.run(layer.get_output(0)), steps * scale @ value)


def rotated(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    """Pairs of elements as complex numbers, turned by the angle of their place."""
    if interleaved:
        real, imaginary = x[..., 0::2], x[..., 1::2]
    else:
        real, imaginary = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)[:, None]
    result = torch.empty_like(x)
    if interleaved:
        result[..., 0::2], result[..., 1::2] = turned.real, turned.imag
    else:
        result[..., : x.shape[-1] // 2], result[..., x.shape[-1] // 2 :] = turned.real, turned.imag
    return result


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dimension", [0, 4])
def test_rotary_embedding_turns_pairs(sketch: Any, interleaved: bool, dimension: int) -> None:
    """The two layouts of pairs would be mixed up, or elements be turned that must stay."""
    x, size = torch.randn(BATCH, HEADS, QUERIES, SIZE), dimension or SIZE
    angles = torch.randn(BATCH, QUERIES, size // 2)
    inputs = [sketch.input(tensor) for tensor in (x, angles.cos(), angles.sin())]
    layer = sketch.add("rotary_embedding", *inputs, interleaved, dimension)
    expected = torch.cat((rotated(x[..., :size], angles, interleaved), x[..., size:]), dim=-1)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_positions_pick_the_rows_of_a_rotary_table(sketch: Any) -> None:
    """Every token of a decoder would be turned as if it were among the first."""
    x, table = torch.randn(BATCH, HEADS, QUERIES, SIZE), torch.randn(16, SIZE // 2)
    positions = torch.randint(0, 16, (BATCH, QUERIES))
    inputs = [sketch.input(tensor) for tensor in (x, table.cos(), table.sin())]
    layer = sketch.add("rotary_embedding", *inputs, False, 0)
    layer.set_input(3, sketch.input(positions))
    expected = rotated(x, table[positions], False)
    torch.testing.assert_close(sketch.run(layer.get_output(0)), expected)


def test_a_cache_is_written_at_the_place_of_each_sequence(sketch: Any) -> None:
    """The second token would overwrite the first, or the cache that was fed would change."""
    cache, update = torch.randn(BATCH, HEADS, 6, SIZE), torch.randn(BATCH, HEADS, 2, SIZE)
    before, places = cache.clone(), torch.tensor([0, 3], dtype=torch.int32)
    inputs = [sketch.input(tensor) for tensor in (cache, update, places)]
    layer = sketch.add("kv_cache_update", *inputs, sketch.trt.KVCacheMode.LINEAR)
    expected = cache.clone()
    expected[0, :, 0:2], expected[1, :, 3:5] = update[0], update[1]
    assert torch.equal(sketch.run(layer.get_output(0)), expected)
    assert torch.equal(cache, before)
