"""Ops that PyTorch's own decompositions leave, or take apart in a way that no engine can hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.backend.harness import Watched, equal
from tests.lowering.check import check

prims = torch.ops.prims
X = torch.linspace(-2.0, 2.0, 12).reshape(3, 4)
INTEGERS = torch.arange(12).reshape(3, 4) - 5

LEFT: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "prims.sum": (lambda x: prims.sum(x, [0]), (X,)),
    "prims.div": (lambda x: prims.div(x, x + 3), (X,)),
    "prims.div of integers": (lambda x: prims.div(x, torch.full_like(x, -2)), (INTEGERS,)),
    "prims.amax": (lambda x: prims.amax(x, [1]), (X,)),
    "prims.where": (lambda x: prims.where(prims.gt(x, x * 0), x, prims.neg(x)), (X,)),
    "dropout in inference": (lambda x: torch.native_dropout(x, 0.5, False)[0] + 1, (X,)),
    "dropout of nothing": (lambda x: (*torch.native_dropout(x, 0.0, True), x + 1), (X,)),
    "memory written later": (lambda x: torch.empty(3, 4).fill_(2) + x, (X,)),
    "memory like another": (lambda x: torch.empty_like(x.t()).copy_(x.t()) + 1, (X,)),
    "new memory": (lambda x: x.new_empty(5).zero_() + x.sum(), (X,)),
    "memory with strides": (lambda x: torch.empty_strided((3, 4), (1, 3)).fill_(1) + x, (X,)),
    "new memory with strides": (
        lambda x: torch.empty_strided((2, 3, 4), (4, 8, 1)).copy_(x).sum((0, 2)),
        (X,),
    ),
    "take by a number": (lambda x: torch.take(x * 2, (x.sum() * 0).long()), (X,)),
    "linspace of values": (lambda x: torch.linspace(x.sum(), x.max(), 7), (X,)),
    "logspace of values": (lambda x: torch.logspace(x.min(), x.max(), 5), (X,)),
    "grid of a line": (
        lambda x: F.affine_grid(x.reshape(2, 2, 3), (2, 1, 1, 5)) + 1,
        (X,),
    ),
    "grid of a volume of one": (
        lambda x: F.affine_grid(x.reshape(1, 3, 4), (1, 1, 1, 4, 1), align_corners=True) + 1,
        (X,),
    ),
    "one step of values": (lambda x: torch.linspace(x.exp().sum(), x.max(), 1), (X,)),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_is_lowered(name: str) -> None:
    """One of these in a model's loss or its masks took the ops around it out of the engine."""
    function, inputs = LEFT[name]
    check(function, *inputs)


def test_numbers_in_a_mapped_function() -> None:
    """PyTorch's `vmap` copies numbers as if they were tensors: a rule took one for a node."""
    compiled = Watched(lambda x: torch.func.vmap(lambda row: row * 2 + 1)(x))
    equal(compiled(X), X * 2 + 1)
    assert compiled.reasons == [] and compiled.lowered > 0


def test_a_sum_with_a_batch_of_products_lies_as_its_kernel_leaves_it() -> None:
    """What a caller reads by strides would be another element: ``self`` may be transposed."""
    x = torch.randn(2, 6, 4).transpose(1, 2)
    a, b = torch.randn(2, 4, 5), torch.randn(2, 5, 6)
    compiled = Watched(torch.baddbmm)
    got = compiled(x, a, b)
    want = torch.baddbmm(x, a, b)
    assert got.stride() == want.stride()
    equal(got, want)
    assert compiled.lowered and not compiled.reasons


def test_a_fill_of_a_transposed_value_leaves_the_graph_functional() -> None:
    """PyTorch's decomposition writes into new memory: the whole graph would stay in PyTorch."""

    def filled(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).transpose(0, 1).index_fill(0, torch.zeros(1, dtype=torch.long), 3.0)

    x = torch.randn(4, 6)
    compiled = Watched(filled)
    got, want = compiled(x), filled(x)
    assert got.stride() == want.stride()
    equal(got, want)
    assert compiled.lowered and not compiled.reasons
