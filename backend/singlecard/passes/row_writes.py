"""Scatters whose index says the same for whole slices are named as what they are.

Libraries for graphs expand an index of rows to every column, for scatter takes nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program
from singlecard.lowering.call import Call
from singlecard.lowering.ops.scatter_reduce import takes_all
from singlecard.passes.rule import is_call, is_node, replace, rule

aten = torch.ops.aten

_REDUCTIONS = ("sum", "prod", "mean", "amax", "amin")


@rule()
def name_row_writes(program: Program, node: fx.Node) -> bool:
    """scatter_add(x, 0, rows[:, None].expand(-1, D), y)   becomes   x, with y added to its rows.

    With another reduction than a sum, it becomes ``index_reduce``.
    """
    if not is_call(node, aten.scatter_add.default, aten.scatter_reduce.two):
        return False
    call = Call.of(node)
    reduction = call.values.get("reduce", "sum")
    includes = call.values.get("include_self", True)
    if reduction not in _REDUCTIONS or (reduction == "sum" and not includes):
        return False
    x, index, source = (call.arguments[name] for name in ("self", "index", "src"))
    if reduction == "mean" and not call.values["self"].dtype.is_floating_point:
        return False
    rows = _rows(index, call.values["dim"])
    if rows is None or call.values["self"].dtype == torch.bool or not takes_all(call):
        return False
    axis = call.values["dim"] % call.values["self"].ndim
    with program.graph.inserting_before(node):
        flat = program.graph.call_function(aten.reshape.default, (rows, [-1]))
    flat.meta = {key: item for key, item in node.meta.items() if key in PATH_KEYS}
    flat.meta["val"] = rows.meta["val"].reshape(-1)
    if reduction == "sum":
        indices = [*[None] * axis, flat]
        replace(program, node, aten.index_put.default, (x, indices, source, True))
    else:
        args = (x, axis, flat, source, reduction)
        replace(program, node, aten.index_reduce.default, args, include_self=includes)
    program.graph.erase_node(node)
    return True


def _rows(index: Any, dim: int) -> fx.Node | None:
    """Return what an index was expanded from, where that has one axis of more than one extent."""
    if is_node(index) and index.meta["val"].ndim == 1:
        return index  # type: ignore[no-any-return]
    if not is_call(index, aten.expand.default) or not is_node(index.args[0]):
        return None
    before, after = index.args[0].meta["val"], index.meta["val"]
    if before.ndim != after.ndim or not after.ndim:
        return None
    axis = dim % after.ndim
    others = [size for other, size in enumerate(before.shape) if other != axis]
    if not all(isinstance(size, int) and size == 1 for size in others):
        return None
    return index.args[0]  # type: ignore[no-any-return]
