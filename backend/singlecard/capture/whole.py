"""Calls in Dynamo's graph that are kept whole, so that AOTAutograd does not take them apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from singlecard.capture import ops
from singlecard.capture.layouts import layout_of

_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
_LINEAR = ("input", "weight", "bias")


def keep_whole(graph: fx.Graph) -> None:
    """Replace calls by our own ops where the meaning is the same.

    Before:  F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=..., enable_gqa=...)
    After:   singlecard::attention(q, k, v, mask, causal, scale, enable_gqa), with the order of the
             result's axes in memory where it is not contiguous

    Before:  F.linear(x, weight, bias)
    After:   singlecard::linear(x, weight, bias)
    """
    if _meets_autocast(graph):
        return  # the dispatcher chooses the types of these ops
    _replace(graph, F.scaled_dot_product_attention, _ATTENTION, ops.attention, _attention)
    _replace(graph, F.linear, _LINEAR, ops.linear, _linear)


def _meets_autocast(graph: fx.Graph) -> bool:
    ambient = any(
        torch.is_autocast_enabled(device)
        for device in ("cpu", "cuda")
        if torch.amp.is_autocast_available(device)
    )
    return ambient or any(
        "autocast" in getattr(node.target, "__name__", "")
        for node in graph.nodes
        if node.op == "call_function"
    )


def _replace(
    graph: fx.Graph,
    function: Any,
    names: tuple[str, ...],
    own: Any,
    arguments: Callable[[dict[str, Any]], tuple[Any, ...] | None],
) -> None:
    for node in graph.find_nodes(op="call_function", target=function):
        # A tensor subclass, such as a quantized weight, brings its own meaning of the call.
        if any(type(arg.meta.get("example_value")) is not FakeTensor for arg in _tensors(node)):
            continue
        answer = node.meta.get("example_value")
        given = arguments(dict(zip(names, node.args, strict=False)) | dict(node.kwargs))
        if given is None:
            continue
        with graph.inserting_before(node):
            whole = graph.call_function(own, given)
            is_laid = own is ops.attention and isinstance(answer, torch.Tensor)
            if is_laid and (layout := layout_of(answer)):
                whole.target, whole.args = ops.laid_attention, (*given, list(layout.order))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [
        arg
        for arg in node.all_input_nodes
        if isinstance(arg.meta.get("example_value"), torch.Tensor)
    ]


def _attention(given: dict[str, Any]) -> tuple[Any, ...] | None:
    if given.get("dropout_p", 0.0) != 0.0:
        return None
    return (
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        given.get("is_causal", False),
        given.get("scale"),
        given.get("enable_gqa", False),
    )


def _linear(given: dict[str, Any]) -> tuple[Any, ...]:
    return given["input"], given["weight"], given.get("bias")
