"""The product of a mixture of experts, which has another name wherever it comes from."""

from __future__ import annotations

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.passes.rule import is_call, replace, rule

aten = torch.ops.aten


@rule()
def name_grouped_product(program: Program, node: fx.Node) -> bool:
    """Give the product of sorted rows with the matrices of their groups one name.

    Before:  aten._grouped_mm(x, w, offsets), or transformers::grouped_mm_fallback(x, w, offsets)
    After:   singlecard::grouped_mm(x, w, offsets)
    """
    if is_call(node, aten._grouped_mm.default):
        if len(node.args) > 3 or node.kwargs or len(node.args) < 3:
            return False
    elif str(node.target) != "transformers.grouped_mm_fallback.default" or node.kwargs:
        return False
    x, weight = (arg.meta["val"] for arg in node.args[:2])  # type: ignore[union-attr]
    if x.ndim != 2 or weight.ndim != 3:
        return False
    replace(program, node, ops.grouped_mm, node.args)
    program.graph.erase_node(node)
    return True
