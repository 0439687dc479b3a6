"""What PyTorch promises of a result beside its values: whose memory it shares, and its layout.

AOTAutograd makes results that are views of inputs again. What results share among each other is
the graph's own business, and rewrites must neither lose it nor add to it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import Layout, layout_of


@dataclass(frozen=True)
class SizeAt:
    """Stands for a size that is only known in a call: its place among the graph's size outputs."""

    place: int


@dataclass(frozen=True)
class View:
    """An op that looks at its first argument's memory; ``rest`` are its other arguments."""

    target: Any
    rest: tuple[Any, ...]


@dataclass(frozen=True)
class Result:
    """How one result lies in memory.

    Attributes:
        owner: results with the same owner share memory; None for views of an input, which
            AOTAutograd makes again, and for what is no tensor.
        layout: of the owner; None where it is contiguous.
        views: what makes the result from its owner, done again on every call.
        source: of a view of an input, that input's place among the graph's placeholders: PyTorch
            goes by the strides and the offset of what it gets, so it must get the view itself.
    """

    owner: int | None = None
    layout: Layout | None = None
    views: tuple[View, ...] = ()
    source: int | None = None


def describe_results(
    results: Sequence[Any],
) -> tuple[list[Any], list[fx.Node], tuple[Result, ...]]:
    """Return what a graph shall compute for its results, sizes needed, and how each is made."""
    sizes: dict[fx.Node, SizeAt] = {}
    chains = [_views(item) if _is_tensor(item) else (item, []) for item in results]
    sharing: dict[Any, set[Any]] = {}
    for item, (owner, _) in zip(results, chains, strict=True):
        sharing.setdefault(owner, set()).add(item)
    owners: dict[Any, int] = {}
    computed, described = [], []
    for item, (owner, views) in zip(results, chains, strict=True):
        if not _is_tensor(item) or owner.op == "placeholder":
            computed.append(item)
            made = tuple(View(view.target, _rest(view, sizes)) for view in views)
            described.append(Result(views=made, source=_place_of(owner) if made else None))
            continue
        if len(sharing[owner]) == 1:  # alone in its memory: its views may be part of an engine
            owner, views = item, []
        place = owners.setdefault(owner, len(owners))
        computed.append(owner)
        made = tuple(View(view.target, _rest(view, sizes)) for view in views)
        described.append(Result(place, layout_of(owner.meta["val"]), made))
    return computed, list(sizes), tuple(described)


def _place_of(placeholder: fx.Node) -> int:
    return list(placeholder.graph.find_nodes(op="placeholder")).index(placeholder)


def view_again(value: Any, views: Sequence[View], sizes: Sequence[Any]) -> Any:
    """Apply views to a tensor, with the sizes of this call."""
    for view in views:
        rest = fx.node.map_aggregate(
            view.rest, lambda arg: sizes[arg.place] if isinstance(arg, SizeAt) else arg
        )
        value = view.target(value, *rest)
    return value


def _is_tensor(item: Any) -> bool:
    return isinstance(item, fx.Node) and isinstance(item.meta.get("val"), torch.Tensor)


def _views(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Follow views up to the op that owns the memory; return it and the views, first to last."""
    chain: list[fx.Node] = []
    while True:
        if node.target is operator.getitem and is_view(node.args[0]):
            chain[:0] = [node.args[0], node]  # type: ignore[list-item]
            node = node.args[0].args[0]  # type: ignore[union-attr, assignment]
        elif is_view(node) and _is_tensor(node):
            chain.insert(0, node)
            node = node.args[0]  # type: ignore[assignment]
        else:
            return node, chain


def is_view(node: Any) -> bool:
    """Tell whether an op's result, or each of its results, lies in its first argument's memory."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.args or node.kwargs:
        return False
    alias = target._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write and _is_tensor(node.args[0])


def _rest(view: fx.Node, sizes: dict[fx.Node, SizeAt]) -> tuple[Any, ...]:
    def place_of(arg: Any) -> Any:
        return sizes.setdefault(arg, SizeAt(len(sizes))) if isinstance(arg, fx.Node) else arg

    return tuple(fx.node.map_aggregate(arg, place_of) for arg in view.args[1:])
