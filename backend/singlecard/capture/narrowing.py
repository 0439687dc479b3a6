"""Pieces of an axis that begin where a tensor says."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def gather_narrowed(graph: fx.Graph) -> None:
    """Gather the elements of a piece whose start is a tensor, in Dynamo's graph.

    Before:  torch.narrow(x, dim, start, length)
    After:   index_select(x, dim, start + arange(length)), counted from the end where it is negative

    PyTorch reads the start on the host to make a view, and no graph can be captured across that. A
    view that may be written to, or shares memory with what others see, stays one.
    """
    if any(_writes(node) for node in graph.nodes):
        return
    narrowed = graph.find_nodes(op="call_function", target=torch.narrow)
    for node in (*narrowed, *graph.find_nodes(op="call_method", target="narrow")):
        given = dict(zip(("input", "dim", "start", "length"), node.args, strict=False))
        given |= node.kwargs
        start: Any = given.get("start")
        value = start.meta.get("example_value") if isinstance(start, fx.Node) else None
        if len(given) != 4 or not isinstance(value, torch.Tensor):
            continue
        if any(user.op == "output" for user in node.users) and not _is_own(graph, given["input"]):
            continue
        source, axis = given["input"], given["dim"]
        with graph.inserting_before(node):
            count = graph.call_method("size", (source, axis))
            behind = graph.call_function(operator.add, (start, count))
            negative = graph.call_function(operator.lt, (start, 0))
            first = graph.call_function(torch.where, (negative, behind, start))
            device: dict[str, Any] = {"device": value.device}
            places = graph.call_function(torch.arange, (given["length"],), device)
            index = graph.call_function(operator.add, (places, first))
            made = graph.call_function(torch.index_select, (source, axis, index))
        for new in (count, behind, negative, first, places, index, made):
            new.meta = {key: item for key, item in node.meta.items() if key != "example_value"}
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def _is_own(graph: fx.Graph, node: Any) -> bool:
    """Tell whether nobody outside of the graph can see the memory of a value."""
    seen = [*graph.find_nodes(op="placeholder"), *graph.output_node().all_input_nodes]
    values = [item.meta.get("example_value") for item in seen if item is not node]
    memory = node.meta["example_value"].untyped_storage()._cdata
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    others = [value.untyped_storage()._cdata for value in tensors]
    return node not in seen and others.count(memory) <= 1  # once for the piece itself


def _writes(node: fx.Node) -> bool:
    """Tell whether a call of Dynamo's may write to an argument."""
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in (operator.setitem, torch.Tensor.copy_) or "out" in node.kwargs:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = getattr(node.target, "__module__", "") == "_operator" and name.startswith("i")
    is_plain = in_place and name in ("is_", "is_not", "index", "inv", "invert")
    return (name.endswith("_") and not name.endswith("__")) or (in_place and not is_plain)
