"""Linear layers made whole again: AOTAutograd flattens them to a matrix product between views."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.symbols import same_extents
from singlecard.passes.rule import (
    erase_unused,
    is_call,
    only_user,
    replace,
    rule,
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


@rule()
def share_factor(program: Program, node: fx.Node) -> bool:
    """bmm(x, expand(t(w)))   becomes   linear(x, w), with one w for all of the batch.

    PyTorch writes products of a batch with one matrix so, such as a linear layer on a transposed
    input. A constant that is broadcast over a batch would be stored once for each of its rows.
    """
    if not is_call(node, aten.bmm.default):
        return False
    first, second = node.args
    weight = _broadcast(second)
    if weight is not None and is_call(weight, aten.t.default):
        replace(program, node, aten.linear.default, (first, weight.args[0]))
    elif weight is not None:
        replace(program, node, aten.matmul.default, (first, _matrix(program, node, weight)))
    else:
        weight = _broadcast(first)
        if weight is None:
            return False
        replace(program, node, aten.matmul.default, (_matrix(program, node, weight), second))
    program.graph.erase_node(node)
    for operand in (first, second):
        erase_unused(program, operand)  # type: ignore[arg-type]
    return True


def _broadcast(node: Any) -> fx.Node | None:
    """Return the matrix that a batch of matrices repeats, or None."""
    while is_call(node, *_VIEWS) and _keeps_matrices(node):
        node = node.args[0]
    if not is_call(node, aten.expand.default) or not _keeps_matrices(node):
        return None
    source: fx.Node = node.args[0]
    shape = shape_of(source)
    return source if len(shape) > 1 and same_extents(shape[:-2], [1] * (len(shape) - 2)) else None


def _keeps_matrices(node: fx.Node) -> bool:
    """Tell whether a move leaves the last two axes as they are."""
    before, after = shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    return len(before) > 1 and len(after) > 1 and same_extents(before[-2:], after[-2:])


def _matrix(program: Program, before: fx.Node, weight: fx.Node) -> fx.Node:
    """Return a matrix without axes of one element in front of it."""
    value = weight.meta["val"]
    if value.ndim == 2:
        return weight
    size = list(value.shape[-2:])
    with program.graph.inserting_before(before):
        matrix = program.graph.call_function(aten.reshape.default, (weight, size))
    matrix.meta = {key: item for key, item in before.meta.items() if key in PATH_KEYS}
    with value.fake_mode:
        matrix.meta["val"] = value.reshape(size)
    return matrix
