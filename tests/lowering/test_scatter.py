"""Elements written by index, with and without a reduction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.lowering.check import check, refuse

_KINDS = (torch.float32, torch.int64, torch.bool)


@pytest.mark.parametrize("kind", _KINDS, ids=str)
def test_replaces(kind: torch.dtype) -> None:
    """Routing tables and masks are written by index, with a source larger than the index too."""
    x, src = torch.randint(0, 9, (4, 5)).to(kind), torch.randint(0, 9, (5, 6)).to(kind)
    index = torch.stack([torch.randperm(4)[:3] for _ in range(4)], 1)
    check(lambda x, i, s: x.scatter(0, i, s), x, index, src, build=True)
    check(lambda x, i: x.scatter(0, i, 1), x, index)
    check(lambda x, i, s: x.scatter(0, i[0, 0], s[0, 0]), x[0, 0], index * 0, src)


@pytest.mark.parametrize("kind", _KINDS, ids=str)
def test_writes_at_indices(kind: torch.dtype) -> None:
    """A key-value cache is written at positions, with slices around them."""
    x, part = torch.randint(0, 9, (2, 6, 3)).to(kind), torch.randint(0, 9, (2, 2, 3)).to(kind)
    place = torch.tensor([4, -6])

    def write(x: torch.Tensor, p: torch.Tensor, i: torch.Tensor) -> Any:
        one, two, three = x.clone(), x.clone(), x.clone()
        one[:, i] = p
        two[torch.tensor([1, 0]), i] = p[0]
        three[torch.tensor([[1], [0]]), :, torch.tensor([0, 2])] = p[0, 0, 0]
        return one, two, three, x.index_copy(1, i % 6, p), x.index_fill(0, i[:1] % 2, 1)

    check(write, x, part, place, build=kind == torch.float32)


@pytest.mark.parametrize("kind", _KINDS, ids=str)
def test_writes_one_value_by_mask(kind: torch.dtype) -> None:
    """``x[mask] = value`` is how models blank out what they must not see."""
    x, mask = torch.randint(0, 9, (2, 3, 4)).to(kind), torch.rand(2, 3) > 0.5

    def write(x: torch.Tensor, mask: torch.Tensor) -> Any:
        one, two, three = x.clone(), x.clone(), x.clone()
        one[mask] = 1
        two[mask] = x[0, 0]
        three[:, mask[0]] = 1
        return one, two, three

    check(write, x, mask, build=True)


def test_values_by_mask_stay_in_pytorch() -> None:
    """How many values are read depends on data: only eager can answer."""
    x, mask, values = torch.rand(4), torch.tensor([True, False, True, False]), torch.rand(2)
    reason = refuse(lambda x, m, v: x.index_put((m,), v), x, mask, values)
    assert "one value is written" in reason and "bool" in reason


@pytest.mark.parametrize("kind", (torch.float32, torch.int64), ids=str)
@pytest.mark.parametrize("operation", ("sum", "prod", "mean", "amax", "amin"))
@pytest.mark.parametrize("include_self", (True, False))
def test_reduces(operation: str, include_self: bool, kind: torch.dtype) -> None:
    """Graph networks sum messages by index; TensorRT has no layer that adds what it scatters."""
    x, src = torch.randint(1, 5, (4, 3)).to(kind), torch.randint(1, 5, (5, 4)).to(kind)
    index = torch.randint(0, 4, (4, 2))
    check(
        lambda x, i, s: x.scatter_reduce(0, i, s, operation, include_self=include_self),
        x,
        index,
        src,
        build=include_self,
    )
    if operation != "sum":
        check(
            lambda x, i, s: x.index_reduce(0, i, s, operation, include_self=include_self),
            x,
            torch.tensor([0, 3, 0]),
            src[:3, :3],
        )


def test_adds() -> None:
    """Mixtures of experts and graph networks add up rows that share a place."""
    x, src, index = torch.rand(5, 3), torch.rand(4, 3), torch.tensor([0, 4, 0, 0])
    check(lambda x, i, s: x.index_add(0, i, s, alpha=2), x, index, src, build=True)
    check(lambda x, i, s: x.scatter_add(0, i[:, None].expand(4, 2), s), x, index, src)
    check(lambda x, i, s: x.index_put((i,), s, accumulate=True), x, index - 5, src)
    check(lambda x, i, s: x.put(i, s[:, 0], accumulate=True), x, index, src)
    check(lambda x, i, s: x.put(i[:2], s[:2, 0]), x, index, src)


def test_too_many_pairs_stay_in_pytorch() -> None:
    """Every place is compared with every update: a large table would take an hour."""
    x, index = torch.zeros(10000, 2), torch.zeros(2000, 2, dtype=torch.int64)
    reason = refuse(lambda x, i: x.scatter_add(0, i, i.float()), x, index)
    assert "<= 16777216" in reason and "40000000" in reason


def _edges(count: int, rows: int) -> torch.Tensor:
    return torch.randint(0, rows, (count,), generator=torch.Generator().manual_seed(count))


LONG: dict[str, Callable[..., torch.Tensor]] = {
    "index_add": lambda x, rows, y: x.index_add(0, rows, y),
    "index_add of another axis": lambda x, rows, y: x.T.index_add(1, rows, y.T),
    "index_put": lambda x, rows, y: x.index_put((rows,), y, True),
    "index_put of integers": lambda x, rows, y: x.long().index_put((rows,), y.long(), True),
    "scatter_add along the only axis": lambda x, rows, y: x[:, 0].scatter_add(0, rows, y[:, 0]),
    "scatter_add of rows": lambda x, rows, y: x.scatter_add(0, rows[:, None].expand(-1, 32), y),
    "the mean of rows": lambda x, rows, y: x.scatter_reduce(
        0, rows[:, None].expand_as(y), y, "mean", include_self=False
    ),
    "the largest of rows": lambda x, rows, y: x.scatter_reduce(
        0, rows.view(-1, 1).expand(-1, 32), y, "amax"
    ),
    "products": lambda x, rows, y: x.index_reduce(0, rows, y, "prod", include_self=False),
}


@pytest.mark.parametrize("name", LONG)
def test_many_updates(name: str) -> None:
    """Graphs have thousands of edges: to hold each against each node would take gigabytes."""
    rows = _edges(3000, 600)
    x, y = torch.randn(600, 32), torch.randn(3000, 32)
    found = check(LONG[name], x, rows, y, build=name == "index_add")
    assert found.graph.engines or name != "index_add"


def test_many_updates_with_odd_values() -> None:
    """NaN stays at its place, and infinities of two signs meet at one only."""
    rows = _edges(3000, 600)
    x, y = torch.randn(600, 32), torch.randn(3000, 32)
    y[5], y[77], y[78] = float("nan"), float("inf"), float("-inf")
    check(lambda x, rows, y: x.index_add(0, rows, y), x, rows, y)


def test_more_updates_than_places() -> None:
    """TensorRT takes no more updates along an axis than there are elements."""
    rows = torch.arange(9) % 4
    x, y = torch.zeros(4, 3), torch.arange(4.0)[rows][:, None].expand(9, 3).contiguous()
    check(lambda x, rows, y: x.index_put((rows,), y), x, rows, y, build=True)
    index = rows[:, None].expand(9, 3).contiguous()
    check(lambda x, rows, y: x.scatter(0, rows, y), x, index, y, build=True)
