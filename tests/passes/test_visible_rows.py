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
