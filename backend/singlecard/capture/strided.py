"""Looks at memory by strides, put upon the tensor that owns the memory."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from singlecard.capture.results import is_view

aten = torch.ops.aten


def read_owners(graph: fx.Graph) -> None:
    """Let every ``as_strided`` read the owner of its memory, in place.

    Its offset counts from the start of the memory, not of the view that it is given. A view that an
    engine answers lies in memory of its own, where other elements stand at that offset.
    """
    for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
        view: Any = node.args[0]
        owner = _owner(view)
        if owner is not view:
            _, size, stride, *given = node.args
            offset = given[0] if given else node.kwargs.get("storage_offset")
            if offset is None:
                offset = view.meta["val"].storage_offset()
            if isinstance(offset, (int, fx.Node)):
                node.args, node.kwargs = (owner, size, stride, offset), {}


def _owner(node: fx.Node) -> fx.Node:
    """Follow views of one element type up to the op, or the input, whose memory they show."""
    while True:
        source: Any = node.args[0] if node.args else None
        if node.target is operator.getitem and is_view(source):
            node = source.args[0]
        elif is_view(node) and source.meta["val"].dtype == node.meta["val"].dtype:
            node = source
        else:
            return node
