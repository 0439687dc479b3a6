"""Scaled-dot-product attention, by whatever name PyTorch gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from singlecard.capture import ops
from singlecard.lowering.ops.attention import LONGEST_WITH_ZEROS, _repeat_heads
from singlecard.network.net import Net
from tests.lowering.check import check, check_sizes


def _heads(queries: int = 5, keys: int = 5, kv_heads: int = 4) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(2, 4, queries, 8),
        torch.randn(2, kv_heads, keys, 8),
        torch.randn(2, kv_heads, keys, 8),
    )


def _attend(mask: bool = False, causal: bool = False, gqa: bool = False) -> Callable[..., Any]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *m: torch.Tensor) -> Any:
        return ops.attention(q, k, v, m[0] if mask else None, causal, None, gqa)

    return attend


def test_plain_and_causal() -> None:
    """Causal order counts from the first key, also where there are more keys than queries."""
    check(_attend(), *_heads(), build=True)
    check(_attend(causal=True), *_heads(3, 7), build=True)
    check(_attend(causal=True), *(x[0] for x in _heads(7, 3)))


def test_grouped_heads() -> None:
    """Decoders share keys and values among heads."""
    check(_attend(gqa=True), *_heads(kv_heads=2), build=True)
    check(_attend(gqa=True, causal=True), *_heads(kv_heads=1))


def test_masks() -> None:
    """A query that may see nothing answers zero, as in PyTorch: padding must not leak."""
    q, k, v = _heads()
    mask = torch.rand(2, 1, 5, 5) > 0.4
    mask[0, 0, 2] = False
    check(_attend(mask=True), q, k, v, mask, build=True)
    check(_attend(mask=True), q, k, v, mask[0, 0])
    check(_attend(mask=True), q, k, v, torch.randn(5, 5))


def test_different_ranks() -> None:
    """One sequence of queries against a batch of keys is broadcast."""
    q, k, v = _heads()
    check(_attend(), q[0, 0], k, v)
    check(_attend(), q, k[0, 0], v[0, 0])
    check(_attend(), q[:, :1], k, v)
    check(_attend(), q[0, :1], k[0], v[0])
    check(_attend(), q[None], k[None], v[None, ..., :3])


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1), (4, 1, 5), (1, 1, 1)])
def test_masks_that_broadcast(shape: tuple[int, ...]) -> None:
    """A mask is broadcast with the scores, whatever it leaves out."""
    q, k, v = (x[0] for x in _heads())
    visible = torch.ones(shape, dtype=torch.bool)
    visible.flatten()[0] = False
    for mask in (torch.randn(shape), visible):
        check(_attend(mask=True), q, k, v, mask)


@pytest.mark.parametrize("own", [12, 4])
def test_heads_that_only_pytorch_knows(own: int) -> None:
    """After a view of several unknown sizes TensorRT says -1 for the heads too: attention of a
    sentence at a time fell back to PyTorch, for twelve heads were taken for minus one's group."""
    net = Net()
    x = net.input("x", torch.float16, (1, -1, -1, 32))
    net.given = {"key": torch.empty(1, own, 7, 32, device="meta")}
    repeated = _repeat_heads(net, x, "key", 12)
    assert (repeated is x) == (own == 12)


HIDING = -torch.inf


def hidden_rows(*shape: int) -> torch.Tensor:
    """A mask with rows that see all keys, some and none."""
    mask = torch.randn(shape)
    mask[..., 1, :3] = HIDING
    mask[..., 2, :] = HIDING
    return mask


@pytest.mark.parametrize("shape", [(5, 5), (2, 1, 5, 5), (2, 4, 5, 5), (5, 1), (1, 4, 5, 1)])
def test_rows_that_an_additive_mask_hides(shape: tuple[int, ...]) -> None:
    """Padding as minus infinity made NaN of a row, and the next layer spread it to all tokens."""
    mask = torch.zeros(shape)
    mask[..., 2, :] = HIDING
    mask[..., 3, :-1] = HIDING
    check(_attend(mask=True), *_heads(), mask, build=True)


def test_rows_of_many_keys_that_an_additive_mask_hides() -> None:
    """Beyond 512 keys the zeros stand behind attention: a select inside would cost its fusion."""
    q, k, v = _heads(5, LONGEST_WITH_ZEROS + 1)
    check(_attend(mask=True), q, k, v, hidden_rows(5, k.shape[2]), build=True)


def test_a_row_of_a_constant_mask() -> None:
    """A mask that is a buffer of the model hides as one that comes with the call."""
    check(_attend(mask=True), *_heads(), torch.nn.Parameter(hidden_rows(5, 5)))


def test_whole_samples_that_are_hidden() -> None:
    """A sample that is padding alone is zero for all its queries, in one dimension and in four."""
    q, k, v = _heads()
    mask = torch.zeros(2, 1, 1, 5)
    mask[1] = HIDING
    check(_attend(mask=True), q, k, v, mask)
    check(_attend(mask=True), q[0], k[0], v[0], torch.full((5,), HIDING))


def test_single_queries_that_are_hidden() -> None:
    """Decoding a padded batch goes through the attention layer, which divides by nothing too."""
    q, k, v = torch.randn(2, 4, 1, 16).half(), *torch.randn(2, 2, 4, 7, 16).half()
    mask = torch.zeros(2, 1, 1, 7).half()
    mask[1] = HIDING
    check(_attend(mask=True), q, k, v, mask, build=True, tolerance=2e-3)
    check(_attend(mask=True), q, k, v, mask == 0, build=True, tolerance=2e-3)


@pytest.mark.parametrize("queries", (5, 1))
def test_width_of_heads_that_varies(queries: int) -> None:
    """With ``dynamic=True``, attention of what no weight gave its width would stay in PyTorch."""
    shapes = [[[2, 4, queries, width], [2, 4, 7, width], [2, 4, 7, width]] for width in (16, 24)]
    check_sizes(torch.nn.functional.scaled_dot_product_attention, shapes, build=True)
