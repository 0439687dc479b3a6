"""Linear layers made whole again: AOTAutograd flattens them to a matrix product between views."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.passes.rule import (
    erase_unused,
    is_call,
    only_user,
    replace,
    rule,
    same_extents,
    shape_of,
)

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def _operands(node: fx.Node) -> tuple[Any, Any, Any] | None:
    """Return (bias, x, weight) of a product with a constant, or None."""
    if is_call(node, aten.mm.default):
        return None, node.args[0], node.args[1]
    if is_call(node, aten.addmm.default) and not node.kwargs and len(node.args) == 3:
        return node.args[0], node.args[1], node.args[2]
    return None


@rule()
def unflatten_product(program: Program, node: fx.Node) -> bool:
    """view(x, [M, K]) -> mm(t(w)) -> view([..., N])   becomes   linear(x, w) with x's own axes.

    With a weight that is not transposed ([in, out], as GPT-2 keeps it) the product is a matmul and
    an add.
    """
    operands = _operands(node)
    if operands is None:
        return False
    bias, x, weight = operands
    if bias is not None and len(shape_of(bias)) != 1:
        return False
    after = only_user(node)
    source = x
    if (
        is_call(x, *_VIEWS)
        and after is not None
        and is_call(after, *_VIEWS)
        and same_extents(shape_of(x.args[0])[-1:], shape_of(x)[-1:])
        and same_extents(shape_of(after)[:-1], shape_of(x.args[0])[:-1])
        and same_extents(shape_of(after)[-1:], shape_of(node)[-1:])
    ):
        source, last = x.args[0], after
    else:
        last = node
    if is_call(weight, aten.t.default):
        replace(program, last, aten.linear.default, (source, weight.args[0], bias))
    elif last is not node and program.constant(weight) is not None:
        product = replace(program, last, aten.matmul.default, (source, weight))
        if bias is not None:
            with program.graph.inserting_after(product):
                total = program.graph.call_function(aten.add.Tensor, (product, bias))
            total.meta = dict(product.meta)
            product.replace_all_uses_with(total, lambda user: user is not total)
    else:
        return False
    program.graph.erase_node(last)
    if last is not node:
        program.graph.erase_node(node)
        erase_unused(program, x)
    return True
