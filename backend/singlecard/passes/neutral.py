"""Constants that change nothing: biases of zero, factors of one."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.passes.rule import forward, is_call, rule, same_shape

aten = torch.ops.aten

#: Longer constants are not looked through: reading them would cost more than it saves.
_LOOKED_THROUGH = 1 << 20


def _is_all(program: Program, value: Any, wanted: float) -> bool:
    if not isinstance(value, fx.Node):
        return False
    constant = program.constant(value)
    return (
        constant is not None
        and constant.is_floating_point()
        and constant.numel() <= _LOOKED_THROUGH
        and bool((constant == wanted).all())
    )


@rule()
def drop_zero_bias(program: Program, node: fx.Node) -> bool:
    """linear(x, w, 0)   becomes   linear(x, w)."""
    if not is_call(node, aten.linear.default) or len(node.args) < 3:
        return False
    if not _is_all(program, node.args[2], 0.0):
        return False
    node.args = node.args[:2]
    return True


@rule()
def drop_neutral(program: Program, node: fx.Node) -> bool:
    """x + 0   and   x * 1   become   x, where type and shape stay the same."""
    wanted = 0.0 if is_call(node, aten.add.Tensor) else 1.0
    if not is_call(node, aten.add.Tensor, aten.mul.Tensor) or node.kwargs:
        return False
    for value, other in (node.args[:2], node.args[1::-1]):
        if not isinstance(value, fx.Node) or not _is_all(program, other, wanted):
            continue
        if value.meta["val"].dtype == node.meta["val"].dtype and same_shape(value, node):
            forward(program, node, value)
            return True
    return False
