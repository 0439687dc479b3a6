"""Reports say which attentions pay for rows that a mask may hide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import singlecard
from singlecard.lowering.guards import Guard


class Attention(nn.Module):
    def forward(self, q: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, q, q, mask)


class Two(nn.Module):
    """Attention under a mask that comes with the call, and under none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Attention(), Attention()

    def forward(self, q: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(q, mask), None)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("keys", "kernels"), [(512, 0), (513, 1)])
def test_where_a_guard_stands_and_what_it_costs(keys: int, kernels: int) -> None:
    """Who gives finite numbers for padding saves these kernels, if the report tells of them."""
    q, mask = torch.randn(1, 2, keys, 16), torch.zeros(keys, keys)
    mask[3] = -torch.inf
    options = {"targets": "sm89", "precision": "fp16"}
    report = singlecard.verify(Two(), (q, mask), options=options)
    assert report.engines == 1 and report.relative_l2 < 1e-2
    assert report.guards == (Guard("first", keys, kernels),)
    assert report.to_dict()["guards"] == [{"place": "first", "keys": keys, "kernels": kernels}]
    told = singlecard.explain(Two(), (q, mask), options=options)
    assert told.guards == report.guards
    words = "1 guarded", "1 kernel behind" if kernels else "part of attention's kernels"
    assert all(text in str(shown) for text in words for shown in (told, report))


def test_nothing_is_said_where_nothing_stands() -> None:
    """A model without such masks has no line about them."""
    q = torch.randn(1, 2, 8, 16)
    report = singlecard.verify(Two(), (q, torch.ones(8, 8).tril().bool()))
    assert len(report.guards) == 1  # a boolean mask that comes with the call may hide rows too
    plain = singlecard.verify(Attention(), (q, None))
    assert plain.guards == () and "masks" not in str(plain)
