"""Batch normalization at inference: folded into a convolution, else a scale and a shift."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.passes.rule import is_call, only_user, replace, rule, shape_of

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class Affine:
    """What a batch norm does to each channel, in float64: ``(x - mean) * scale + bias``."""

    mean: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    @property
    def shift(self) -> torch.Tensor:
        shift = -self.mean * self.scale
        return shift if self.bias is None else shift + self.bias


def _affine(program: Program, node: fx.Node) -> Affine | None:
    """Return what a batch norm does, or None if not all of it is constant."""
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
    offset = None if bias is None else bias.to("cpu", torch.float64)
    return Affine(mean.to("cpu", torch.float64), scale, offset)


@rule(rounds=True)
def fold_batch_norm(program: Program, node: fx.Node) -> bool:
    """conv(x, w, b) -> batch_norm -> y   becomes   conv(x, w * scale, b * scale + shift) -> y."""
    if not is_call(node, _BATCH_NORM):
        return False
    users = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
        return False
    affine = _affine(program, node)
    if affine is None:
        return False
    result = _into_convolution(program, node, affine) or _by_element(program, node, affine)
    for user in users:
        user.replace_all_uses_with(result)
        program.graph.erase_node(user)
    program.graph.erase_node(node)
    return True


def _by_element(program: Program, norm: fx.Node, affine: Affine) -> fx.Node:
    """Write a batch norm as (x - mean) * scale + bias.

    The mean goes first: x * scale can leave FP16's range where the result is small.
    """
    x: Any = norm.args[0]
    result = x
    extents = (1, -1) + (1,) * (len(shape_of(x)) - 2)
    steps = (
        (aten.sub.Tensor, affine.mean),
        (aten.mul.Tensor, affine.scale),
        (aten.add.Tensor, affine.bias),
    )
    for target, value in steps:
        if value is None:
            continue
        operand = value.reshape(extents).to(x.meta["val"].dtype)
        constant = program.new_constant(norm, operand, x)
        with program.graph.inserting_before(norm):
            result = program.graph.call_function(target, (result, constant))
        result.meta = dict(norm.meta, val=x.meta["val"])
    return result  # type: ignore[no-any-return]


def _into_convolution(program: Program, norm: fx.Node, affine: Affine) -> fx.Node | None:
    conv: Any = norm.args[0]
    if not is_call(conv, aten.convolution.default):
        return None
    x, weight_node, bias_node = conv.args[:3]
    weight, bias = program.constant(weight_node), program.constant(bias_node)
    if weight is None or (bias_node is not None and bias is None) or only_user(conv) is not norm:
        return None
    transposed, groups = conv.args[6], conv.args[8]
    if transposed and groups != 1:
        return None
    extents = (1, -1) if transposed else (-1, 1)
    factor = affine.scale.reshape(extents + (1,) * (weight.ndim - 2))
    offset = affine.shift
    if bias is not None:
        offset = offset + bias.to("cpu", torch.float64) * affine.scale
    product = (weight.to("cpu", torch.float64) * factor).to(weight.dtype)
    offset = offset.to(weight.dtype)
    if not (product.isfinite().all() and offset.isfinite().all()):
        return None
    new_weight = program.new_constant(conv, product, weight_node)
    new_bias = program.new_constant(conv, offset, weight_node)
    new = replace(program, conv, conv.target, (x, new_weight, new_bias, *conv.args[3:]))
    program.graph.erase_node(conv) if not conv.users else None
    return new
