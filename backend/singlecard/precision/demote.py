"""float64, which no engine computes with, computed in FP32 where the user says so."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import fx

from singlecard.capture.opaque import is_opaque
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
    narrowed: set[fx.Node] = set()
    last = graph.find_nodes(op="placeholder")[-1:]
    for node in list(graph.nodes):
        if node.op == "placeholder" and _is_wide(node):
            with graph.inserting_after(last[0]):
                narrow = _cast(graph, node, torch.float32)
            node.replace_all_uses_with(narrow, lambda user, own=narrow: user is not own)
            wide = [narrow if value is node else value for value in wide]
            narrowed.add(narrow)
        elif node.op == "get_attr" and _is_wide(node):
            held = program.constant(node)
            assert held is not None
            constant = program.new_constant(node, program.convert(held, torch.float32), node)
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
            wide = [constant if value is node else value for value in wide]
            narrowed.add(constant)
        elif is_opaque(node):  # it takes and gives what it was captured with
            for value in [item for item in node.all_input_nodes if item in narrowed]:
                with graph.inserting_before(node):
                    node.replace_input_with(value, _cast(graph, value, torch.float64))
            narrowed.update(_narrow_results(graph, node, wide))
        elif node.target is operator.getitem and is_opaque(node.args[0]):
            continue
        elif node.op == "call_function":
            if _is_wide(node):
                narrowed.add(node)
            node.args = _narrowed(node.args)
            node.kwargs = _narrowed(node.kwargs)
            node.meta["val"] = _narrowed(node.meta["val"])
    for value in wide:
        with graph.inserting_before(output):
            back = _cast(graph, value, torch.float64)
        output.replace_input_with(value, back)
    return program


def _narrow_results(graph: fx.Graph, node: fx.Node, wide: list[fx.Node]) -> list[fx.Node]:
    """Cast the results of an op that keeps its types, and return the casts."""
    results = [node] if _is_wide(node) else [user for user in node.users if _is_wide(user)]
    casts = []
    for result in results:
        with graph.inserting_after(result):
            narrow = _cast(graph, result, torch.float32)
        result.replace_all_uses_with(narrow, functools.partial(operator.is_not, narrow))
        wide[:] = [narrow if value is result else value for value in wide]
        casts.append(narrow)
    return casts


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
