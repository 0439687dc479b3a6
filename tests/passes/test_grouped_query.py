"""Heads of keys that were repeated for groups of queries are handed on as they were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.graphs import fired, simplified, targets


def repeated(x: torch.Tensor, group: int) -> torch.Tensor:
    batch, heads, length, width = x.shape
    spread = x[:, :, None].expand(batch, heads, group, length, width)
    return spread.reshape(batch, heads * group, length, width)


def test_repeated_heads_are_shared() -> None:
    """Repeated in memory, the whole cache is copied once for each word that a decoder writes."""
    program = simplified(
        lambda k, v, q: F.scaled_dot_product_attention(q, repeated(k, 3), repeated(v, 3)),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 6, 4, 8),
    )
    assert targets(program) == ["singlecard.attention.default"]
    (node,) = program.calls()
    assert node.args[6] is True


def tiled(x: torch.Tensor) -> torch.Tensor:
    """The heads in turn, 0 1 0 1 0 1, where groups have 0 0 0 1 1 1."""
    batch, heads, length, width = x.shape
    return x[:, None].expand(batch, 3, heads, length, width).reshape(batch, -1, length, width)


@pytest.mark.parametrize("spread", [tiled, lambda x: x.repeat_interleave(3, 1)[:, [1, 0] * 3]])
def test_another_order_of_heads_is_left(spread: object) -> None:
    """Heads in turn are no groups: shared as groups, queries look at another head's keys."""
    program = simplified(
        lambda k, v, q: F.scaled_dot_product_attention(q, spread(k), spread(v)),  # type: ignore[operator]
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 6, 4, 8),
    )
    assert "share_key_heads" not in fired(program)


def test_only_keys_repeated_is_left() -> None:
    """Values with heads of their own have nothing to share."""
    program = simplified(
        lambda k, v, q: F.scaled_dot_product_attention(q, repeated(k, 3), v),
        torch.randn(2, 2, 5, 8),
        torch.randn(2, 6, 5, 8),
        torch.randn(2, 6, 4, 8),
    )
    assert "share_key_heads" not in fired(program)
