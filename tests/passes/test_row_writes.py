"""Scatters of whole rows are named as such: each row is looked for once, not once a column."""

from __future__ import annotations

import torch
from torch import nn

from tests.graphs import simplified, targets


class Aggregate(nn.Module):
    """Messages collected at their nodes, as libraries for graphs write it."""

    def __init__(self, reduction: str | None, width: int = 4) -> None:
        super().__init__()
        self.reduction, self.width = reduction, width

    def forward(self, x: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        index = rows.unsqueeze(-1).expand(-1, self.width)
        if self.reduction is None:
            return x.scatter_add(0, index, y)
        return x.scatter_reduce(0, index, y, self.reduction, include_self=False)


def _targets(model: nn.Module) -> list[str]:
    rows = torch.tensor([0, 2, 2, 1, 0])
    return targets(simplified(model, torch.randn(3, 4), rows, torch.randn(5, 4)))


def test_a_sum_of_rows_is_an_accumulating_write() -> None:
    assert "aten.index_put.default" in _targets(Aggregate(None))


def test_other_reductions_of_rows_are_reductions_by_index() -> None:
    assert "aten.index_reduce.default" in _targets(Aggregate("mean"))


def test_a_part_of_the_columns_stays_a_scatter() -> None:
    """The last columns of x are written by nobody: to write whole rows would change them."""
    assert "aten.scatter_add.default" in _targets(Aggregate(None, width=3))


def test_an_index_for_each_element_stays_a_scatter() -> None:
    class Elements(nn.Module):
        def forward(self, x: torch.Tensor, rows: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            index = (rows.unsqueeze(-1) + torch.arange(4)) % 3
            return x.scatter_add(0, index, y)

    assert "aten.scatter_add.default" in _targets(Elements())
