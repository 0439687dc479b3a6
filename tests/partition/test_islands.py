"""A small engine between parts in PyTorch is kept where it saves more than its call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from singlecard.partition import Partition, divide
from tests.graphs import program_of

aten = torch.ops.aten


def cut(model: Callable[..., torch.Tensor], *args: torch.Tensor) -> Partition:
    def refusal(node: fx.Node) -> str | None:
        return "not here" if node.target is aten.sin.default else None

    return divide(program_of(model, *args), refusal)


def engines(partition: Partition) -> int:
    return sum(segment.lowered for segment in partition.segments)


def test_single_op_between_two_is_given_back() -> None:
    """Two visits to an engine, for the sake of one addition, cost more than the addition."""
    partition = cut(lambda x: (x.sin() + 1).sin(), torch.ones(8))
    assert engines(partition) == 0 and len(partition.segments) == 1
    (reason,) = [item.reason for item in partition.fallback if item.op == "aten.add"]
    assert "1 op between parts in PyTorch" in reason and "min_block_size=1" in reason


def test_views_are_no_work() -> None:
    """Shapes cost PyTorch no launch: five views and an addition are one addition."""
    partition = cut(lambda x: (x.sin()[None].mT[None].mT[None] + 1).sin(), torch.ones(8, 8))
    assert engines(partition) == 0


def test_a_small_graph_of_its_own_is_kept() -> None:
    """With nothing in PyTorch there is no boundary that could cost anything."""
    assert engines(cut(lambda x: x + 1, torch.ones(8))) == 1


WEIGHT = torch.nn.Parameter(torch.ones(2048, 2048))
FILTER = torch.nn.Parameter(torch.ones(256, 64, 3, 3))


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda x: ((((x.sin() + 1) * 2 - 3) / 4).abs().relu()).sin(), (8,)),
        (lambda x: ((x.sin() + 1) * 2).sin(), (1024, 1024)),
        (lambda x: (x.sin() @ WEIGHT).sin(), (64, 2048)),
        (lambda x: torch.conv2d(x.sin(), FILTER).sin(), (1, 64, 64, 64)),
    ],
    ids=["many ops", "large between", "large product", "large convolution"],
)
def test_what_saves_more_than_a_call_is_kept(
    model: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]
) -> None:
    """Given back, work that an engine does in one go would be done op by op, in FP32."""
    assert engines(cut(model, torch.ones(shape))) == 1


def test_small_product_is_given_back() -> None:
    """A product of a few numbers is as quick in PyTorch, and an engine of its own has scratch."""
    weight = torch.nn.Parameter(torch.ones(8, 8))
    assert engines(cut(lambda x: (x.sin() @ weight).sin(), torch.ones(4, 8))) == 0


def test_symbolic_sizes_are_counted_by_the_example() -> None:
    """A batch that varies must not make every island look small."""
    program = program_of(lambda x: ((x.sin() + 1) * 2).sin(), torch.ones(1024, 1024), dynamic=True)
    partition = divide(program, lambda n: "no" if n.target is aten.sin.default else None)
    assert engines(partition) == 1
