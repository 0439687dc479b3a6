"""Values that are known whatever the elements are: tensors without any, and fills of one number.

TensorRT-RTX 1.7.1.116 builds networks with extents of 0, be it in constants, inputs or outputs; an
engine has nothing to compute in them all the same. Here they become constants, so that what follows
from them (the sum over no elements, a product of no terms) is folded, and nothing is left of them
but in ops whose other operands vary.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from singlecard.capture.opaque import is_opaque
from singlecard.capture.program import Program, with_effects
from singlecard.lowering.call import Call, tensors_in
from singlecard.lowering.table import CARRIED
from singlecard.passes.rule import forward, is_call, replace, rule, same_shape

aten = torch.ops.aten


def is_empty(value: Any) -> bool:
    """Tell whether a value is a tensor that has no elements, whatever its other extents are."""
    return isinstance(value, torch.Tensor) and any(
        isinstance(size, int) and size == 0 for size in value.shape
    )


def _is_static(value: torch.Tensor) -> bool:
    return value.layout is torch.strided and all(
        isinstance(size, int) for size in (*value.shape, *value.stride())
    )


def name_empty(program: Program) -> None:
    """x[:0] -> y   becomes   constant -> y, for every value without elements.

    A result that is an argument stays that argument.
    """
    placeholders = program.placeholders
    first = placeholders[-1].next if placeholders else next(iter(program.graph.nodes))
    for node in list(program.graph.nodes):
        value = node.meta.get("val")
        if node.op not in ("placeholder", "call_function") or not is_empty(value):
            continue
        source = node.args[0] if node.target is operator.getitem else node
        if isinstance(source, fx.Node) and (is_opaque(source) or source.target is with_effects):
            continue  # a token: what comes behind it must not come before
        is_given = node.op == "placeholder"
        users = [user for user in node.users if not (is_given and user.op == "output")]
        if not users or not _is_static(value):
            continue
        elements = torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype)
        constant = program.new_constant(first if is_given else node, elements, node)
        node.replace_all_uses_with(constant, users.__contains__)
        program.trace.append(f"name_empty at {node.name}")
    program.drop_dead()


@rule()
def drop_empty_write(program: Program, node: fx.Node) -> bool:
    """x, with nothing written into it   becomes   x."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    values = Call.of(node).values
    written = [values.get(name) for name in ("index", "indices", "src", "source")]
    if not any(map(is_empty, tensors_in(written))) or is_empty(node.meta["val"]):
        return False
    source = node.args[0] if node.args and isinstance(values.get("self"), torch.Tensor) else None
    # What only reads places has the index's shape: no elements.
    if not isinstance(source, fx.Node) or not same_shape(source, node):
        return False
    forward(program, node, source)
    return True


@rule()
def drop_empty_product(program: Program, node: fx.Node) -> bool:
    """beta * x + alpha * (products of no terms)   becomes   beta * x."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    call = Call.of(node)
    beta = call.values.get("beta")
    if not {"beta", "alpha"} <= call.values.keys() or not isinstance(beta, (int, float)):
        return False
    if is_empty(node.meta["val"]) or not is_empty(list(call.values.values())[1]):
        return False
    size = node.meta["val"].shape
    whole = replace(program, node, aten.expand.default, (node.args[0], list(size)))
    if beta != 1:
        whole.replace_input_with(node.args[0], _scaled(program, whole, beta))  # type: ignore[arg-type]
    program.graph.erase_node(node)
    return True


def _scaled(program: Program, before: fx.Node, beta: float) -> fx.Node:
    """Return the first argument times a number; of 0 times NaN, PyTorch makes 0."""
    x = before.args[0]
    assert isinstance(x, fx.Node)
    with program.graph.inserting_before(before):
        if beta == 0:
            scaled = program.graph.call_function(aten.full_like.default, (x, 0))
        else:
            scaled = program.graph.call_function(aten.mul.Scalar, (x, beta))
    scaled.meta = {**before.meta, "val": x.meta["val"]}
    return scaled


@rule()
def name_fill(program: Program, node: fx.Node) -> bool:
    """full_like(x, 2.0, dtype=float64)   becomes   a constant, where no engine has that type."""
    if not is_call(node, aten.full_like.default, aten.full.default):
        return False
    value, number = node.meta["val"], node.args[1]
    if value.dtype in CARRIED or not _is_static(value) or isinstance(number, fx.Node):
        return False
    filled = torch.full((), number, dtype=value.dtype)  # type: ignore[arg-type]
    forward(program, node, program.new_constant(node, filled.expand(tuple(value.shape)), node))
    return True
