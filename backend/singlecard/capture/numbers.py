"""Numbers that a model holds, such as an epsilon: constants, which Dynamo guards."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_scalar


def freeze_numbers(graph: fx.Graph) -> None:
    """Put the value of a module's own floating-point number where the graph reads it.

    Before:  input (a number of the module) -> item -> ops
    After:   ops with the number itself

    With ``dynamic=True`` Dynamo takes every floating-point number for one that varies, and hands it
    over as a float64 tensor, which no engine takes. Asking for its value adds a guard: with another
    number the model is compiled again. Numbers that the caller gives stay inputs.
    """
    for node in graph.find_nodes(op="placeholder"):
        held, value = node.meta.get("grapharg"), node.meta.get("example_value")
        source = getattr(held, "source", None)
        memo: Any = getattr(value, "item_memo", None)
        if not isinstance(memo, torch.SymFloat) or source is None or not _is_module_s(source.name):
            continue
        readers = list(node.users)
        if all(user.op == "call_method" and user.target == "item" for user in readers):
            number = guard_scalar(memo)
            for user in readers:
                user.replace_all_uses_with(number)
                graph.erase_node(user)


def _is_module_s(name: str) -> bool:
    """Tell whether a source is an attribute of the compiled module, or of one inside of it."""
    return name.startswith(("L['self'].", "L['fn']."))
