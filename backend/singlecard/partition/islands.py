"""Is a small engine between two parts in PyTorch worth its call?

An island pays one engine call, and saves what PyTorch would do op by op: a launch for each op, the
traffic of what lies between the ops, and work that runs faster in lower precision. All is counted
in launches. Nothing here was timed: the numbers stand for host times of 5 to 10 microseconds for an
op in eager PyTorch and for our own goal of 30 for an engine's call, on a card that moves 300 GB and
computes 20 TFLOP in a second.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from singlecard.lowering.call import tensors_in

aten = torch.ops.aten

#: An engine's call, in launches.
CALL = 4.0
#: Bytes that a card moves, and operations that it computes, in the time of a launch.
BYTES = 2.0 * 2**20
OPERATIONS = 1.2e8

#: Ops that PyTorch answers with another view of the same memory.
VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.detach.default,
        aten.alias.default,
        operator.getitem,
    }
)

#: Products: the argument whose elements are each used once for an element of the result.
_PRODUCTS: dict[Any, int] = {
    aten.linear.default: 1,
    aten.addmm.default: 2,
    aten.mm.default: 1,
    aten.bmm.default: 1,
    aten.matmul.default: 1,
    aten.convolution.default: 1,
}


def is_worth_its_call(nodes: Iterable[fx.Node]) -> bool:
    """Tell whether an island saves more than an engine's call costs."""
    inside = set(nodes)
    saved = 0.0
    for node in inside:
        if node.target not in VIEWS:
            saved += 1 + _work(node) / OPERATIONS
            if node.users and all(user in inside for user in node.users):
                saved += 2 * _bytes(node) / BYTES  # written and read again
    return saved > CALL


def _number(size: Any) -> int:
    """Return an extent, or the one of the example where it is symbolic."""
    return int(size) if isinstance(size, int) else int(size.node.hint or 1)


def _count(tensor: torch.Tensor) -> int:
    return math.prod(_number(size) for size in tensor.shape)


def _bytes(node: fx.Node) -> int:
    return sum(_count(item) * item.element_size() for item in tensors_in(node.meta["val"]))


def _work(node: fx.Node) -> float:
    """Return the multiplications and additions of a product; 0 for other ops."""
    place = _PRODUCTS.get(node.target)
    if place is None:
        return 0.0
    result: torch.Tensor = node.meta["val"]
    operand: Any = node.args[place]
    weight: torch.Tensor = operand.meta["val"]
    last = _number(result.shape[1 if node.target is aten.convolution.default else -1])
    return 2.0 * _count(result) * _count(weight) / max(1, last) / _batches(node, weight)


def _batches(node: fx.Node, weight: torch.Tensor) -> int:
    """Return how many matrices the second operand holds, each for its own part of the result."""
    if node.target in (aten.bmm.default, aten.matmul.default):
        return max(1, math.prod(_number(size) for size in weight.shape[:-2]))
    return 1
