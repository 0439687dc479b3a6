"""Rotary position embeddings, recognized in their parts, for queries and keys in one go."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import PATH_KEYS, Program
from singlecard.capture.symbols import same_extents
from singlecard.passes.rule import is_call, replace, rule, same_shape, shape_of

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


@rule()
def fuse_rotary(program: Program, node: fx.Node) -> bool:
    """Name a rotation by its angles.

    Before:  x * cos + cat([-x[..., h:], x[..., :h]]) * sin                  (halves), or
             x * cos + flatten(stack([-x[..., 1::2], x[..., ::2]], -1)) * sin  (neighbours)
    After:   singlecard::rotary(x, cos, sin, interleaved)
    """
    if not is_call(node, aten.add.Tensor) or node.kwargs:
        return False
    for straight, across in (node.args, node.args[::-1]):
        if not is_call(straight, aten.mul.Tensor) or not is_call(across, aten.mul.Tensor):
            continue
        for turned, sine in (across.args, across.args[::-1]):  # type: ignore[union-attr]
            found = _turned(turned)
            if found is None:
                continue
            x, interleaved = found
            for source, cosine in (straight.args, straight.args[::-1]):  # type: ignore[union-attr]
                if source is x and _fits(x, cosine) and _fits(x, sine):
                    replace(program, node, ops.rotary, (x, cosine, sine, interleaved))
                    program.graph.erase_node(node)
                    return True
    return False


def _fits(x: fx.Node, angles: Any) -> bool:
    """Tell whether angles broadcast to a tensor, and have one for each of its last elements."""
    if not isinstance(angles, fx.Node) or angles.meta["val"].dtype != x.meta["val"].dtype:
        return False
    sizes, wide = shape_of(angles), shape_of(x)
    return len(sizes) == len(wide) and same_extents(sizes[-1:], wide[-1:])


def _turned(node: Any) -> tuple[fx.Node, bool] | None:
    """Return what was turned by a right angle, and whether its pairs are neighbours."""
    if is_call(node, aten.cat.default):
        parts, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
        interleaved = False
        if axis not in (-1, len(shape_of(node)) - 1):
            return None
    elif is_call(node, *_VIEWS) and is_call(node.args[0], aten.stack.default):
        stacked = node.args[0]
        parts, axis = stacked.args[0], stacked.args[1] if len(stacked.args) > 1 else 0
        interleaved = True
        if axis not in (-1, len(shape_of(stacked)) - 1):
            return None
    else:
        return None
    if len(parts) != 2 or not is_call(parts[0], aten.neg.default):
        return None
    second, first = _part(parts[0].args[0], interleaved), _part(parts[1], interleaved)
    if second is None or first is None or second[0] is not first[0]:
        return None
    if (first[1], second[1]) != (0, 1) or not same_extents(shape_of(node), shape_of(first[0])):
        return None
    return first[0], interleaved


def _part(node: Any, interleaved: bool) -> tuple[fx.Node, int] | None:
    """Return (x, 0) for the first half or the even elements of x, (x, 1) for the others."""
    if not is_call(node, aten.slice.Tensor):
        return None
    x, axis, start, end, step = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])[:5]
    sizes = shape_of(x)
    last = len(sizes) - 1
    width = sizes[last]
    if axis not in (-1, last) or not isinstance(width, int) or width % 2:
        return None
    start = 0 if start is None else start
    end = width if end is None else min(end, width)
    if interleaved:
        return (x, start) if (step, end) == (2, width) and start in (0, 1) else None
    half = width // 2
    halves = {(0, half): 0, (half, width): 1}
    return (x, halves[start, end]) if step == 1 and (start, end) in halves else None


@rule()
def rotate_together(program: Program, node: fx.Node) -> bool:
    """Turn queries and keys in one op, where the angles are the same.

    Before:  rotary(q [B, N, S, H], cos, sin), rotary(k [B, M, S, H], cos, sin)
    After:   rotary(cat([q, k], 1), cos, sin) -> slices
    """
    if not is_call(node, ops.rotary):
        return False
    axis = _heads_axis(node)
    if axis is None:
        return False
    others = [user for user in node.args[1].users if user is not node]  # type: ignore[union-attr]
    for other in others:
        if not is_call(other, ops.rotary) or other.args[1:] != node.args[1:]:
            continue
        if not _same_but(axis, shape_of(node), shape_of(other)):
            continue
        first, second = sorted((node, other))
        if not all(same_shape(turn.args[0], turn) for turn in (first, second)):  # type: ignore[arg-type]
            continue  # angles for several samples turn one
        if not all(second < user for user in first.users):
            continue  # what turns second may need what turned first
        _merge(program, first, second, axis)
        return True
    return False


def _heads_axis(node: fx.Node) -> int | None:
    """Return the axis of the heads, on which all share their angles."""
    _, cosine, sine = node.args[:3]
    if len(shape_of(node)) != 4:
        return None
    for axis in (1, 2):
        heads = shape_of(node)[axis]
        shared = all(shape_of(angles)[axis] == 1 for angles in (cosine, sine))  # type: ignore[arg-type]
        if isinstance(heads, int) and heads > 1 and shared:
            return axis
    return None


def _same_but(axis: int, a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return (
        len(a) == len(b)
        and isinstance(b[axis], int)
        and same_extents(a[:axis] + a[axis + 1 :], b[:axis] + b[axis + 1 :])
    )


def _merge(program: Program, first: fx.Node, second: fx.Node, axis: int) -> None:
    graph = program.graph
    sources: list[Any] = [first.args[0], second.args[0]]
    fakes = [source.meta["val"] for source in sources]
    meta = {key: item for key, item in second.meta.items() if key in PATH_KEYS}
    with graph.inserting_before(second):
        joined = graph.call_function(aten.cat.default, (sources, axis))
        joined.meta = meta | {"val": torch.cat(fakes, axis)}
        turned = graph.call_function(ops.rotary, (joined, *second.args[1:]))
        turned.meta = dict(joined.meta)
        start = 0
        for node in (first, second):
            end = start + shape_of(node)[axis]
            part = graph.call_function(aten.slice.Tensor, (turned, axis, start, end))
            part.meta = meta | {"val": node.meta["val"]}
            node.replace_all_uses_with(part)
            start = end
    for node in (second, first):
        graph.erase_node(node)
