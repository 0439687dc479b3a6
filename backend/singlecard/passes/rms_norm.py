"""RMSNorm recognized in its parts, so that its statistics stay in FP32."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.passes.rule import is_call, replace, rule, shape_of

aten = torch.ops.aten


def _mean_square(node: Any) -> Any:
    """Return x where node is mean(x ** 2, -1, keepdim=True)."""
    if not is_call(node, aten.mean.dim) or node.kwargs or node.args[2:] != (True,):
        return None
    square = node.args[0]
    if list(node.args[1]) not in ([-1], [len(shape_of(square)) - 1]):
        return None
    if is_call(square, aten.pow.Tensor_Scalar) and square.args[1] == 2:
        return square.args[0]
    if is_call(square, aten.mul.Tensor) and square.args[0] is square.args[1]:
        return square.args[0]
    return None


@rule()
def fuse_rms_norm(program: Program, node: fx.Node) -> bool:
    """x * rsqrt(mean(x ** 2) + eps)   becomes   singlecard::rms_norm(x, None, eps)."""
    if not is_call(node, aten.mul.Tensor):
        return False
    for x, factor in (node.args, node.args[::-1]):
        if not isinstance(x, fx.Node) or not is_call(factor, aten.rsqrt.default):
            continue
        shifted = factor.args[0]  # type: ignore[union-attr]
        if not is_call(shifted, aten.add.Tensor, aten.add.Scalar):
            continue
        mean, eps = shifted.args[:2]  # type: ignore[union-attr]
        if shifted.kwargs or x.meta["val"].dtype != node.meta["val"].dtype:  # type: ignore[union-attr]
            continue
        if isinstance(eps, (int, float)) and _mean_square(mean) is x:
            replace(program, node, ops.rms_norm, (x, None, float(eps)))
            program.graph.erase_node(node)
            return True
    return False
