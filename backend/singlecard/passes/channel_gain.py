"""Weights with a scale for each output channel get one scale in all, and gains behind the product.

TensorRT-RTX 1.7.1 lets a product whose weight has a scale for each channel write FP32, which a
kernel behind it rescales, and sends such a weight through memory as floating point where a single
row is multiplied. With one scale for the whole weight it does neither, and a multiplication of the
product's result joins the kernel behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.quantized import dequantize
from singlecard.passes.rule import is_call, rule, shape_of

aten = torch.ops.aten

#: The smallest gain that FP16 holds to full precision.
LEAST_GAIN = 2.0**-14


@rule(rounds=True)
def gain_channels(program: Program, node: fx.Node) -> bool:
    """linear(x, dequantize(q, s[C, 1]), b)   becomes   linear(x, dequantize(q, max(s))) * g + b.

    Where ``g = s / max(s)``; convolutions likewise, their gains along the axis of channels. Linear
    layers that read one tensor share the maximum, so that the builder still joins their products.
    INT4 is left alone: it has scales for blocks.
    """
    if not is_call(node, dequantize) or node.args[2] == "int4":
        return False
    codes, held, kind, dtype = node.args
    scale = program.constant(held)  # type: ignore[arg-type]
    if scale is None or not _is_by_row(scale) or not all(_takes(user, node) for user in node.users):
        return False
    rows = scale.detach().to("cpu", torch.float32).flatten()
    top = max([rows.max(), *_ranges_beside(program, node)])
    gains = rows / top
    if not bool((gains >= LEAST_GAIN).all()):  # NaN too
        return False
    whole = program.new_constant(node, top.clone(), held)  # type: ignore[arg-type]
    weight = _call(program, node, dequantize, (codes, whole, kind, dtype), node)
    for user in list(node.users):
        _multiply(program, user, weight, gains)
    program.graph.erase_node(node)
    return True


def _is_by_row(scale: torch.Tensor) -> bool:
    """Tell whether scales differ along the first axis, and along no other."""
    return scale.ndim > 1 and scale.shape[0] > 1 and scale.numel() == scale.shape[0]


def _takes(user: fx.Node, weight: fx.Node) -> bool:
    """Tell whether a value is a weight's only use in an op, with its output channels first."""
    if not is_call(user, aten.linear.default, aten.convolution.default) or user.kwargs:
        return False
    if is_call(user, aten.convolution.default) and user.args[6]:
        return False  # transposed: input channels come first
    return user.args[1] is weight and sum(arg is weight for arg in user.args) == 1


def _ranges_beside(program: Program, node: fx.Node) -> Iterator[torch.Tensor]:
    """Yield the largest scale of each weight of that kind that multiplies the same tensor."""
    readers = [user for user in node.users if is_call(user, aten.linear.default)]
    for reader in [beside for user in readers for beside in user.args[0].users]:  # type: ignore[union-attr]
        weight = reader.args[1] if is_call(reader, aten.linear.default) else None
        if is_call(weight, dequantize) and weight.args[2] == node.args[2]:  # type: ignore[union-attr]
            scale = program.constant(weight.args[1])  # type: ignore[union-attr, arg-type]
            if scale is not None:
                yield scale.detach().to("cpu", torch.float32).max()


def _multiply(program: Program, node: fx.Node, weight: fx.Node, gains: torch.Tensor) -> None:
    x, _, *rest = node.args
    bias = rest[0] if rest else None
    spatial = len(shape_of(node)) - 2 if node.target == aten.convolution.default else 0
    shape = (-1, *[1] * spatial)
    dtype = node.meta["val"].dtype
    with program.graph.inserting_before(node):
        bare = (x, weight, None, *rest[1:]) if spatial else (x, weight)
        result = _call(program, node, node.target, bare, node)
        held = program.new_constant(node, gains.reshape(shape).to(dtype), node)
        result = _call(program, node, aten.mul.Tensor, (result, held), node)
        if isinstance(bias, fx.Node):
            if spatial:
                bias = _shaped_bias(program, node, bias, shape)
            result = _call(program, node, aten.add.Tensor, (result, bias), node)
    node.replace_all_uses_with(result)
    program.graph.erase_node(node)


def _shaped_bias(program: Program, node: fx.Node, bias: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    value = program.constant(bias)
    if value is not None:
        return program.new_constant(node, value.reshape(shape), node)
    fake = bias.meta["val"].reshape(shape)
    return _call(program, node, aten.view.default, (bias, list(fake.shape)), node, fake)


def _call(
    program: Program,
    before: fx.Node,
    target: Any,
    args: tuple[Any, ...],
    like: fx.Node,
    value: Any = None,
) -> fx.Node:
    with program.graph.inserting_before(before):
        new = program.graph.call_function(target, args)
    new.meta = {key: item for key, item in like.meta.items() if key in (*PATH_KEYS, "val")}
    if value is not None:
        new.meta["val"] = value
    return new
