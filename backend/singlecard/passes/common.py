"""Common subexpressions: what is computed twice from the same values is computed once."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import promised
from singlecard.capture.program import Program

#: Ops of others may draw numbers, or count their calls, and need not say so.
_FUNCTIONS = ("aten", "prims", "singlecard")


def _key(value: Any) -> Any:
    """Return something hashable that is equal for equal arguments only."""
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, (bool, int, float)):
        return type(value), repr(value)  # True, 1 and 1.0 are equal, and not the same
    return value


def merge_common(program: Program) -> None:
    """x -> f -> a; x -> f -> b   becomes   x -> f -> a, b."""
    seen: dict[Any, fx.Node] = {}
    for node in list(program.calls()):
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and (
            torch.Tag.nondeterministic_seeded in target.tags
            or target._schema.is_mutable
            or target.namespace not in _FUNCTIONS
        ):
            continue
        named = tuple((k, _key(v)) for k, v in sorted(node.kwargs.items()))
        key = (target, _key(node.args), named, str(promised(node)))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            program.graph.erase_node(node)
            program.trace.append(f"merge_common at {node.name}")
