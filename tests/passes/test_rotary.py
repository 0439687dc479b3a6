"""Rotary embeddings are recognized in both layouts, and queries and keys turn together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.graphs import fired, simplified, targets

Turn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def halves(x: torch.Tensor) -> torch.Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), -1)


def neighbours(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


@pytest.mark.parametrize("turn", [halves, neighbours])
def test_is_recognized(turn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Llama turns halves, GPT-J neighbours: what is not recognized is turned head by head."""
    x, cos, sin = torch.randn(2, 3, 5, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 1, 5, 8)
    program = simplified(lambda x, cos, sin: x * cos + turn(x) * sin, x, cos, sin)
    assert targets(program) == ["singlecard.rotary.default"]
    (node,) = program.calls()
    assert node.args[3] is (turn is neighbours)


@pytest.mark.parametrize(
    "turn",
    [
        lambda x, cos, sin: x * cos + torch.cat((x[..., 4:], -x[..., :4]), -1) * sin,
        lambda x, cos, sin: x * cos + torch.cat((-x[..., :4], x[..., 4:]), -1) * sin,
        lambda x, cos, sin: x * cos + torch.cat((-x[..., 2:], x[..., :2]), -1) * sin,
        lambda x, cos, sin: (x + 1) * cos + halves(x) * sin,
        lambda x, cos, sin: torch.add(x * cos, halves(x) * sin, alpha=2),
        lambda x, cos, sin: x * cos + torch.stack((-x[..., ::2], x[..., 1::2]), -1).flatten(-2),
    ],
)
def test_near_miss_is_left(turn: Turn) -> None:
    """Turned the other way, by other pairs, or scaled: taken for a rotation, words swap places."""
    x, angles = torch.randn(2, 3, 5, 8), torch.randn(1, 1, 5, 8)
    assert "fuse_rotary" not in fired(simplified(turn, x, angles, angles + 1))


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + halves(x) * sin


def test_queries_and_keys_turn_together() -> None:
    """Apart, each layer of a decoder has one kernel more for each word that it writes."""
    program = simplified(
        lambda q, cos, sin, k: (rotated(q, cos, sin), rotated(k, cos, sin)),
        torch.randn(2, 6, 5, 8),
        torch.randn(1, 1, 5, 8),
        torch.randn(1, 1, 5, 8),
        torch.randn(2, 2, 5, 8),
    )
    assert targets(program).count("singlecard.rotary.default") == 1


@pytest.mark.parametrize(
    "model",
    [
        lambda q, cos, sin, k: (rotated(q, cos, sin), rotated(k, sin, cos)),
        lambda q, cos, sin, k: rotated(k + rotated(q, cos, sin).mean(1, True), cos, sin),
    ],
)
def test_other_angles_and_what_waits_turn_apart(model: Callable[..., object]) -> None:
    """A key that needs the turned query, or has angles of its own, joined with it is wrong."""
    program = simplified(
        model,
        torch.randn(2, 6, 5, 8),
        torch.randn(1, 1, 5, 8),
        torch.randn(1, 1, 5, 8),
        torch.randn(2, 2, 5, 8),
    )
    assert "fuse_rotary" in fired(program)
    assert "rotate_together" not in fired(program)
