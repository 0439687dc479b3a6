"""Values without elements are constants: they cut no graph, and what follows from them is right.

Sliced, masked or ragged data often leaves a part with nothing in it. Each would be a hole in the
engine, with the model in two halves around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.graphs import fired, simplified, targets
from tests.lowering.check import check

F = torch.nn.functional

#: Functions of a [3, 4] and a [0, 4], with part of the result varying with the first.
MIXED: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "a join of both": lambda x, none: torch.cat([x, none, x * 2]),
    "a join of another type": lambda x, none: torch.cat([none.long(), x.long()]),
    "a sum over nothing": lambda x, none: x.exp() + none.sum(0),
    "a product over nothing": lambda x, none: x.exp() * none.prod(0),
    "a mean over nothing": lambda x, none: x.exp() + none.mean(0),
    "any and all of nothing": lambda x, none: (x.bool() | none.bool().any(0), none.bool().all(0)),
    "a matrix product without terms": lambda x, none: x.sum() + x[:, :0] @ none,
    "a matrix product without rows": lambda x, none: (x @ none.T, none @ x.T, x + 1),
    "addmm without terms": lambda x, none: torch.addmm(x, x[:, :0], none, beta=0.5),
    "baddbmm without terms": lambda x, none: torch.baddbmm(
        x[None], x[None, :, :0], none[None], beta=2
    ),
    "addmm without anything": lambda x, none: torch.addmm(x / 0, x[:, :0], none, beta=0),
    "index_add of nothing": lambda x, none: x.exp().index_add(0, none[:, 0].long(), none),
    "index_copy of nothing": lambda x, none: x.exp().index_copy(0, none[:, 0].long(), none),
    "index_put of nothing": lambda x, none: x.exp().index_put((none[:, 0].long(),), none),
    "index_put that adds nothing": lambda x, none: x.exp().index_put(
        (none[:, 0].long(),), none, True
    ),
    "scatter of nothing": lambda x, none: x.exp().scatter(0, none.long(), none),
    "scatter_add of nothing": lambda x, none: x.exp().scatter_add(0, none.long(), none),
    "a slice replaced by nothing": lambda x, none: x.exp().slice_scatter(none, 0, 1, 1),
    "padding around nothing": lambda x, none: F.pad(none, (0, 0, 1, 2), value=2.0) + x,
    "pieces, one of them empty": lambda x, none: x.exp().split([1, 0, 2]),
    "selected rows, none": lambda x, none: (
        x[none[:, 0].long()],
        x.index_select(1, none[:, 0].long()),
        x + 1,
    ),
    "a stack": lambda x, none: (torch.stack([none, none]), x + 1),
    "a list of strides": lambda x, none: (none.T, x.T + 1, x[:, 4:].T),
}


@pytest.mark.parametrize("name", MIXED)
def test_parts_without_elements_are_no_holes(name: str) -> None:
    """The rest of the graph is one engine; every answer, type and layout is eager PyTorch's."""
    function, x, none = MIXED[name], torch.randn(3, 4), torch.ones(0, 4)
    found = check(function, x, none)
    got, wanted = found.comparison, function(x, none)
    assert got.mismatch is None
    leaves = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    assert any(leaf.numel() for leaf in leaves)


def test_identities_of_reductions() -> None:
    """0, 1, NaN, False and True: what a loss over an empty batch is made of."""
    none = torch.ones(0, 4)

    def reduced(x: torch.Tensor, none: torch.Tensor) -> list[torch.Tensor]:
        return [x + 1, none.sum(), none.prod(), none.mean(), none.bool().any(), none.bool().all()]

    sums = reduced(torch.ones(1), none)[1:]
    assert [item.item() for item in sums[:2]] == [0.0, 1.0] and math.isnan(sums[2])
    check(reduced, torch.ones(1), none)


def test_results_without_elements_have_layout_and_memory_of_their_own() -> None:
    """Who writes into one result must not write into another call's."""
    model = torch.compile(
        lambda x: (x[:0].T.clone(), x * 2),
        backend="singlecard",
        options={"execution": "reference", "min_block_size": 1},
    )
    (first, _), (second, _) = model(torch.ones(3, 4)), model(torch.ones(3, 4))
    assert first.shape == (4, 0) and first is not second
    assert first.stride() == torch.ones(3, 4)[:0].T.clone().stride()


class Emptied(nn.Module):
    """Most of a layer around a slice of no rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(torch.cat([x, torch.sigmoid(x[:0] * 2)]))


def test_what_is_made_of_nothing_is_folded() -> None:
    program = simplified(Emptied(), torch.randn(2, 4))
    assert targets(program) == ["aten.relu.default"]


class Filled(nn.Module):
    """What tells the shape of its argument in a type that no engine has."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full_like(x, 2.5, dtype=torch.float64), torch.zeros_like(x).relu()


def test_a_fill_of_a_foreign_type_is_a_constant() -> None:
    """A float64 of ones would take the ops around it apart; its value is known."""
    program = simplified(Filled(), torch.randn(2, 4))
    assert "name_fill" in fired(program)
    check(Filled(), torch.randn(2, 4))


def test_a_read_by_no_index_is_no_write() -> None:
    """The result has the index's shape, which a square tensor may share: nothing is forwarded."""
    x, none = torch.randn(3, 4), torch.ones(3, 0, dtype=torch.int64)
    check(lambda x, none: (torch.gather(x, 1, none), x.exp()), x, none)
