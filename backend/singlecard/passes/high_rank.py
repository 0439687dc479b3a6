"""Work on tensors of more dimensions than TensorRT has, done where they have fewer."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.lowering.conditions import MOST_DIMENSIONS
from singlecard.passes.rule import forward, is_call, rule

aten = torch.ops.aten

#: Ops that give the same elements, in the same order, other dimensions.
_SIZED = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_SAME_ORDER = (
    *_SIZED,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)


@rule()
def work_at_lower_rank(program: Program, node: fx.Node) -> bool:
    """x [8 axes] -> view [9 axes] -> op   becomes   x -> op [8 axes] -> view [9 axes].

    For an op that works on each element alone, and whose other operands are numbers.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.pointwise not in target.tags:
        return False
    operands = node.all_input_nodes
    if len(operands) != 1 or not _is_high(node):
        return False
    source, views = _lower_source(operands[0])
    if not views or _is_high(source):
        return False
    with program.graph.inserting_before(node):
        low = program.graph.node_copy(node, lambda _: source)
        value, dtype = source.meta["val"], node.meta["val"].dtype
        low.meta = _meta(node, value.new_empty(value.shape, dtype=dtype))
        for view in views:
            shape = view.meta["val"].shape
            low = program.graph.call_function(view.target, (low, *view.args[1:]), view.kwargs)  # type: ignore[arg-type]
            low.meta = _meta(node, value.new_empty(shape, dtype=dtype))
    forward(program, node, low)
    return True


@rule()
def skip_high_rank(program: Program, node: fx.Node) -> bool:
    """x -> view [9 axes] -> view [fewer]   becomes   x -> view [fewer]."""
    if not is_call(node, *_SIZED):
        return False
    source, views = _lower_source(node.args[0])  # type: ignore[arg-type]
    if not views:
        return False
    node.target = aten.reshape.default
    node.update_arg(0, source)
    return True


def _lower_source(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return what too high a view is a view of, and the views between, first to last."""
    views: list[fx.Node] = []
    while _is_high(node) and is_call(node, *_SAME_ORDER):
        views.insert(0, node)
        node = node.args[0]  # type: ignore[assignment]
    return node, views


def _meta(like: fx.Node, value: torch.Tensor) -> dict[str, Any]:
    return {key: item for key, item in like.meta.items() if key in PATH_KEYS} | {"val": value}


def _is_high(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.ndim > MOST_DIMENSIONS
