"""A mask that leaves each query some key is known to, where that is certain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from singlecard.capture import ops
from tests.graphs import simplified

Mask = Callable[[torch.Tensor], torch.Tensor]


def step(mask: Mask) -> Callable[..., torch.Tensor]:
    """A step of a decoder that writes its keys at a place, and masks by that place."""

    def model(
        new: torch.Tensor, at: torch.Tensor, cache: torch.Tensor, q: torch.Tensor
    ) -> torch.Tensor:
        new = new * 1.5
        cache.index_copy_(2, at + torch.arange(2), new)
        places = (at + torch.arange(q.shape[2]))[:, None]
        return F.scaled_dot_product_attention(q, cache, cache, mask(places))

    return model


def sees(mask: Mask) -> bool:
    program = simplified(
        step(mask),
        torch.randn(1, 2, 2, 8),
        torch.tensor([3]),
        torch.randn(1, 2, 9, 8),
        torch.randn(1, 2, 2, 8),
    )
    (node,) = [node for node in program.calls() if node.target == ops.attention]
    return len(node.args) == 8 and node.args[7] is True


@pytest.mark.parametrize(
    "mask",
    [
        lambda places: torch.arange(9) <= places,
        lambda places: places >= torch.arange(9),
        lambda places: (torch.arange(9) <= places)[None, None],
        lambda places: torch.arange(9) <= places.to(torch.int32),
    ],
)
def test_causal_mask_leaves_the_first_key(mask: Mask) -> None:
    """Not known, each layer has a kernel more that guards rows which see nothing."""
    assert sees(mask)


@pytest.mark.parametrize(
    "mask",
    [
        lambda places: torch.arange(9) < places,
        lambda places: torch.arange(1, 10) <= places,
        lambda places: torch.arange(9) <= places - 5,
        lambda places: (torch.arange(9) <= places) & (torch.arange(9) > places + 1),
        lambda places: torch.arange(9) >= places,
    ],
)
def test_a_row_that_may_see_nothing_is_guarded(mask: Mask) -> None:
    """PyTorch gives zero for a query that sees no key: unguarded, it is an average of all."""
    assert not sees(mask)


def guarded(mask: Callable[..., torch.Tensor], *args: torch.Tensor) -> bool:
    """Tell whether attention under a mask of numbers pays for rows that may be hidden."""
    q = torch.randn(2, 4, 5, 8)
    program = simplified(
        lambda q, *args: F.scaled_dot_product_attention(q, q * 2, q, mask(*args)), q, *args
    )
    (node,) = [node for node in program.calls() if node.target == ops.attention]
    return node.args[7:] != (True,)


LOWEST = torch.finfo(torch.float32).min
KEEP = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
FEW = torch.rand(2, 1, 1, 5)


def causal() -> torch.Tensor:
    return torch.full((5, 5), -torch.inf).triu(1)


def padded(keep: torch.Tensor, number: float) -> torch.Tensor:
    return torch.zeros(2, 1, 1, 5).masked_fill(keep[:, None, None] == 0, number)


@pytest.mark.parametrize(
    ("mask", "args"),
    [
        (lambda: torch.full((5, 5), -torch.inf).triu(1), ()),
        (lambda keep: padded(keep, LOWEST), (KEEP,)),
        (lambda keep: padded(keep, -1e4).expand(2, 4, 5, 5), (KEEP,)),
        (lambda keep: torch.where(keep[:, None, None] > 0, 0.0, LOWEST), (KEEP,)),
        (lambda keep: (1.0 - (keep[:, None, None] > 0).float()) * LOWEST, (KEEP,)),
        (lambda keep: (1.0 - keep[:, None, None].bool().to(torch.float32)) * -1e9, (KEEP,)),
        (lambda keep: causal() + padded(keep, -1e4), (KEEP,)),
        (lambda x: causal() + x.sigmoid().log1p().clamp(min=-3), (FEW,)),
        (lambda x: causal()[None, None] + torch.tanh(x), (FEW,)),
        (lambda x: x.clamp(min=-100.0), (FEW,)),
        (lambda x: -x.abs().minimum(torch.tensor(9.0)), (FEW,)),
    ],
)
def test_masks_that_need_no_guard(mask: Mask, args: tuple[torch.Tensor, ...]) -> None:
    """A kernel for each layer, beyond 512 keys, for rows that cannot be."""
    assert not guarded(mask, *args)


@pytest.mark.parametrize(
    ("mask", "args"),
    [
        (lambda x: x, (FEW,)),
        (lambda x: x * 2 + 1, (FEW,)),
        (lambda at: torch.where(torch.arange(5) <= at[:, None] - 1, 0.0, -torch.inf), (KEEP[0],)),
        (lambda keep: padded(keep, -torch.inf), (KEEP,)),
        (lambda keep: causal() + padded(keep, -torch.inf), (KEEP,)),
        (lambda x: causal() + x, (FEW,)),
        (lambda x: torch.full((5, 5), -torch.inf).triu(0) + x.tanh(), (FEW,)),
        (lambda x: x.log(), (FEW,)),
        (lambda x: causal()[:, 2:3].expand(5, 5) + x.tanh(), (FEW,)),
    ],
)
def test_masks_that_may_hide_a_row(mask: Mask, args: tuple[torch.Tensor, ...]) -> None:
    """NaN of a padded row spreads to the tokens of a user's text in the next layer."""
    assert guarded(mask, *args)
