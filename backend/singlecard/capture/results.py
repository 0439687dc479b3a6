"""What PyTorch promises of a result beside its values: whose memory it shares, and its layout.

AOTAutograd regenerates results that are views of inputs. What results share among each other is
the graph's own business, and rewrites must neither lose it nor add to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Result:
    """How one result lies in memory.

    Attributes:
        owner: results with the same owner share memory; None for views of an input, which
            AOTAutograd makes again, and for what is no tensor.
        order: the owner's axes from the largest stride to the smallest; None where it is contiguous
            or the order is not known.
        views: the ops that make the result from its owner, to be done again on every call.
    """

    owner: int | None = None
    order: tuple[int, ...] | None = None
    views: tuple[fx.Node, ...] = ()


def describe_results(results: Sequence[Any]) -> tuple[list[Any], tuple[Result, ...]]:
    """Return what a graph shall compute for its results, and how each is made from that."""
    chains = [_views(item) if _is_tensor(item) else (item, ()) for item in results]
    counts: dict[Any, set[Any]] = {}
    for item, (owner, _) in zip(results, chains, strict=True):
        counts.setdefault(owner, set()).add(item)
    owners: dict[Any, int] = {}
    computed, described = [], []
    for item, (owner, views) in zip(results, chains, strict=True):
        if not _is_tensor(item) or owner.op == "placeholder":
            computed.append(item)
            described.append(Result())
            continue
        if len(counts[owner]) == 1:  # alone in its memory: the views may run in the engine
            owner, views = item, ()
        place = owners.setdefault(owner, len(owners))
        computed.append(owner)
        described.append(Result(place, _axis_order(owner.meta["val"]), views))
    return computed, tuple(described)


def laid_out(value: torch.Tensor, order: tuple[int, ...] | None) -> torch.Tensor:
    """Return a tensor whose axes lie in memory in this order, the same where they do already."""
    if order is None:
        return value.contiguous()
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return value.permute(order).contiguous().permute(inverse)


def _is_tensor(item: Any) -> bool:
    return isinstance(item, fx.Node) and isinstance(item.meta.get("val"), torch.Tensor)


def _views(node: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """Follow views up to the op that owns the memory; return it and the views, first to last."""
    chain: list[fx.Node] = []
    while _is_view(node):
        chain.insert(0, node)
        node = node.args[0]  # type: ignore[assignment]
    return node, tuple(chain)


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.args:
        return False
    alias, source = target._schema.arguments[0].alias_info, node.args[0]
    return alias is not None and not alias.is_write and _is_tensor(source)


def _axis_order(value: torch.Tensor) -> tuple[int, ...] | None:
    strides = [_hint(stride) for stride in value.stride()]
    sizes = [_hint(size) for size in value.shape]
    if any(item is None for item in (*strides, *sizes)):
        return None
    if any(s == 0 and size > 1 for s, size in zip(strides, sizes, strict=True)):  # type: ignore[operator]
        return None
    # Axes of extent 1 have no place of their own: they stay beside their neighbours.
    moving = [axis for axis, size in enumerate(sizes) if size != 1]
    sorted_axes = iter(sorted(moving, key=lambda axis: -strides[axis]))  # type: ignore[operator]
    order = tuple(next(sorted_axes) if sizes[axis] != 1 else axis for axis in range(value.ndim))
    return None if order == tuple(range(value.ndim)) else order


def _hint(size: Any) -> int | None:
    if isinstance(size, torch.SymInt):
        return int(size.node.hint) if size.node.hint is not None else None
    return int(size)
