"""float64, which no engine computes with, computed in FP32 where the user says so."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture.program import PATH_KEYS, Program

aten = torch.ops.aten


def demote_float64(program: Program) -> Program:
    """Let the float64 parts of a Program compute in FP32, in place.

    Inputs and outputs keep their type. An engine cannot take or give float64 either, so that the
    casts at both ends are left to PyTorch.
    """
    graph = program.graph
    output = graph.output_node()
    wide = [value for value in output.all_input_nodes if _is_wide(value)]
    last = graph.find_nodes(op="placeholder")[-1:]
    for node in list(graph.nodes):
        if node.op == "placeholder" and _is_wide(node):
            with graph.inserting_after(last[0]):
                narrow = _cast(graph, node, torch.float32)
            node.replace_all_uses_with(narrow, lambda user, own=narrow: user is not own)
            wide = [narrow if value is node else value for value in wide]
        elif node.op == "get_attr" and _is_wide(node):
            held = program.constant(node)
            assert held is not None
            constant = program.new_constant(node, program.convert(held, torch.float32), node)
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
            wide = [constant if value is node else value for value in wide]
        elif node.op == "call_function":
            node.args = _narrowed(node.args)
            node.kwargs = _narrowed(node.kwargs)
            node.meta["val"] = _narrowed(node.meta["val"])
    for value in wide:
        with graph.inserting_before(output):
            back = _cast(graph, value, torch.float64)
        output.replace_input_with(value, back)
    return program


def _is_wide(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


def _cast(graph: fx.Graph, value: fx.Node, dtype: torch.dtype) -> fx.Node:
    cast = graph.call_function(aten._to_copy.default, (value,), {"dtype": dtype})
    cast.meta = {key: item for key, item in value.meta.items() if key in PATH_KEYS}
    cast.meta["val"] = value.meta["val"].to(dtype)
    return cast


def _narrowed(value: Any) -> Any:
    """Put float32 for float64, in types that are asked for and in tensors that are described."""
    if value is torch.float64:
        return torch.float32
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.float64 else value
    if isinstance(value, dict):
        return {key: _narrowed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_narrowed(item) for item in value)
    return value
