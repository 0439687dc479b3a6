"""Numbers that a model holds, such as an epsilon: constants, which Dynamo guards."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_scalar

from singlecard.capture.sources import is_of_module, source_of


def freeze_numbers(graph: fx.Graph) -> None:
    """Put the value of a module's own floating-point number where the graph reads it.

    Before:  input (a number of the module) -> item -> ops
    After:   ops with the number itself

    With ``dynamic=True`` Dynamo takes every floating-point number for one that varies, and hands it
    over as a float64 tensor, which no engine takes. Asking for its value adds a guard: with another
    number the model is compiled again. Numbers that the caller gives stay inputs.
    """
    for node in graph.find_nodes(op="placeholder"):
        memo: Any = getattr(node.meta.get("example_value"), "item_memo", None)
        if not isinstance(memo, torch.SymFloat) or not is_of_module(source_of(node)):
            continue
        readers = list(node.users)
        if all(user.op == "call_method" and user.target == "item" for user in readers):
            number = guard_scalar(memo)
            for user in readers:
                user.replace_all_uses_with(number)
                graph.erase_node(user)
