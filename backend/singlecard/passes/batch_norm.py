"""Batch normalization at inference: folded into a convolution, else a scale and a shift."""

from __future__ import annotations

import operator

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.passes.rule import is_call, only_user, replace, shape_of

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def _scale_and_shift(program: Program, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the float64 factor and offset per channel, or None if not all are constant."""
    weight, bias, mean, variance = (program.constant(arg) for arg in node.args[1:5])  # type: ignore[arg-type]
    if mean is None or variance is None:
        return None
    if (weight is None) != (node.args[1] is None) or (bias is None) != (node.args[2] is None):
        return None
    # Variances of real networks exceed what FP16 holds: fold in float64, round once at the end.
    epsilon = float(node.args[-1])  # type: ignore[arg-type]
    scale = torch.rsqrt(variance.to("cpu", torch.float64) + epsilon)
    if weight is not None:
        scale = scale * weight.to("cpu", torch.float64)
    shift = -mean.to("cpu", torch.float64) * scale
    if bias is not None:
        shift = shift + bias.to("cpu", torch.float64)
    return scale, shift


def fold_batch_norm(program: Program, node: fx.Node) -> bool:
    """conv(x, w, b) -> batch_norm -> y   becomes   conv(x, w * scale, b * scale + shift) -> y."""
    if not is_call(node, _BATCH_NORM):
        return False
    users = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
        return False
    folded = _scale_and_shift(program, node)
    if folded is None:
        return False
    scale, shift = folded
    conv = node.args[0]
    dtype = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    result = _into_convolution(program, conv, node, scale, shift)
    if result is None:
        x = node.args[0]
        extents = (1, -1) + (1,) * (len(shape_of(x)) - 2)  # type: ignore[arg-type]
        factor, offset = (
            program.new_constant(node, value.reshape(extents).to(dtype), x)  # type: ignore[arg-type]
            for value in (scale, shift)
        )
        with program.graph.inserting_before(node):
            product = program.graph.call_function(aten.mul.Tensor, (x, factor))
            result = program.graph.call_function(aten.add.Tensor, (product, offset))
        for new in (product, result):
            new.meta = dict(node.meta, val=x.meta["val"])  # type: ignore[union-attr]
    for user in users:
        user.replace_all_uses_with(result)
        program.graph.erase_node(user)
    program.graph.erase_node(node)
    return True


def _into_convolution(
    program: Program, conv: object, norm: fx.Node, scale: torch.Tensor, shift: torch.Tensor
) -> fx.Node | None:
    if not is_call(conv, aten.convolution.default):
        return None
    assert isinstance(conv, fx.Node)
    x, weight_node, bias_node = conv.args[:3]
    weight, bias = program.constant(weight_node), program.constant(bias_node)  # type: ignore[arg-type]
    if weight is None or (bias_node is not None and bias is None) or only_user(conv) is not norm:
        return None
    transposed, groups = conv.args[6], conv.args[8]
    if transposed and groups != 1:
        return None
    extents = (1, -1) if transposed else (-1, 1)
    factor = scale.reshape(extents + (1,) * (weight.ndim - 2))
    offset = shift if bias is None else shift + bias.to("cpu", torch.float64) * scale
    new_weight = program.new_constant(
        conv,
        (weight.to("cpu", torch.float64) * factor).to(weight.dtype),
        weight_node,  # type: ignore[arg-type]
    )
    new_bias = program.new_constant(conv, offset.to(weight.dtype), weight_node)  # type: ignore[arg-type]
    new = replace(program, conv, conv.target, (x, new_weight, new_bias, *conv.args[3:]))
    program.graph.erase_node(conv) if not conv.users else None
    return new
