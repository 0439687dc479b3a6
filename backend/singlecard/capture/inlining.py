"""Regions that Dynamo hands over as graphs of their own, and that mean what stands in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_ops = torch.ops.higher_order


def inline_regions(module: fx.GraphModule) -> None:
    """Put what stands in a region where the region is called, in place, however deep they are.

    Before:  body (a graph); tag_activation_checkpoint(body, x)
    After:   the ops of body

    Checkpoints change what is kept for gradients, nested compile regions how often a graph is
    compiled; for an answer, neither is there.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in _REGIONS:
            _inline(module, node)


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    body: Any = node.args[0]
    region = getattr(module, str(body.target), None) if isinstance(body, fx.Node) else None
    operands = _REGIONS[node.target](node)
    if not isinstance(region, fx.GraphModule) or operands is None:
        return  # kept as it is, and run by PyTorch
    placeholders = region.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(operands):
        return
    graph, values = module.graph, dict(zip(placeholders, operands, strict=True))
    copied = []
    with graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                continue
            if inner.op == "output":
                result = fx.map_arg(inner.args[0], values.__getitem__)
                break
            copy = values[inner] = graph.node_copy(inner, values.__getitem__)
            if inner.op == "get_attr":
                copy.target = _new_name(module, str(inner.target))
                setattr(module, copy.target, getattr(region, str(inner.target)))
            copied.append(copy)
    for user in list(node.users):
        if _is_item(user):
            item = result[user.args[1]]
            _put(user, item)
            graph.erase_node(user)
    _put(node, result)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)
    for copy in copied:
        if copy.op == "call_function" and copy.target in _REGIONS:
            _inline(module, copy)


def _put(node: fx.Node, value: Any) -> None:
    """Let the users of a node use a value, which may be a nest of nodes."""
    for user in list(node.users):
        user.args, user.kwargs = fx.map_arg(
            (user.args, user.kwargs), lambda item: value if item is node else item
        )


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem"


def _new_name(module: fx.GraphModule, name: str) -> str:
    place = 0
    while hasattr(module, f"{name}_{place}"):
        place += 1
    return f"{name}_{place}"


def _from(place: int) -> Callable[[fx.Node], Any]:
    """Return what reads the operands of a region from this argument on."""
    return lambda node: node.args[place:]


def _packed(node: fx.Node) -> Any:
    """Operands in a tuple, and none by name."""
    if len(node.args) > 2 and node.args[2]:
        return None
    return node.args[1]


#: Ops that run a graph as it stands, and what reads the graph's operands from such a call.
_REGIONS: dict[Any, Callable[[fx.Node], Any]] = {
    _ops.tag_activation_checkpoint: _from(1),
    _ops.wrap_activation_checkpoint: _from(1),
    _ops.wrap: _from(1),
    _ops.invoke_subgraph: _from(2),
    _ops.foreach_map: _from(1),
    _ops.invoke_quant: _from(1),
    _ops.invoke_quant_packed: _from(1),
    _ops.strict_mode: _packed,
    _ops.hints_wrapper: _packed,
}
