"""Heads of keys and values that several heads of queries share, left shared."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.capture.symbols import same_extents
from singlecard.passes.rule import is_call, replace, rule, shape_of

aten = torch.ops.aten


@rule()
def share_key_heads(program: Program, node: fx.Node) -> bool:
    """Leave it to attention to repeat the heads of keys and values.

    Before:  k [B, N, T, H] -> unsqueeze(2) -> expand [B, N, G, T, H] -> view [B, N * G, T, H]
             -> attention(q, k, v)
    After:   attention(q, k, v, enable_gqa=True) with k and v as they were
    """
    if not is_call(node, ops.attention):
        return False
    query, key, value, mask, causal, scale, _, *rest = node.args
    key_before, value_before = _before_repeat(key), _before_repeat(value)
    if key_before is None or value_before is None:
        return False
    if shape_of(key_before)[1] != shape_of(value_before)[1]:
        return False
    args = (query, key_before, value_before, mask, causal, scale, True, *rest)
    replace(program, node, ops.attention, args)
    program.graph.erase_node(node)
    return True


def _before_repeat(node: Any) -> fx.Node | None:
    """Return the tensor whose heads were repeated each for a group, or None."""
    if not is_call(node, aten.view.default, aten._unsafe_view.default, aten.reshape.default):
        return None
    spread = node.args[0]
    if not is_call(spread, aten.expand.default):
        return None
    lifted = spread.args[0]
    if not is_call(lifted, aten.unsqueeze.default) or len(shape_of(spread)) != 5:
        return None
    source: Any = lifted.args[0]
    batch, heads, group, *rest = shape_of(spread)
    if not isinstance(heads, int) or not isinstance(group, int):
        return None
    if lifted.args[1] not in (2, -3) or not same_extents(shape_of(source), (batch, heads, *rest)):
        return None
    return source if same_extents(shape_of(node), (batch, heads * group, *rest)) else None
