"""Masks that are known to leave each query some key, so that no row needs a guard."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.capture.symbols import same_extents
from singlecard.passes.intervals import interval_of
from singlecard.passes.rule import is_call, replace, rule, shape_of

aten = torch.ops.aten

#: Ops that only move elements, or change an integer's width.
_MOVES = (
    aten.unsqueeze.default,
    aten.squeeze.dims,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.permute.default,
    aten.transpose.int,
)
#: Moves that may leave rows of keys as they are.
_OF_ROWS = (
    aten.unsqueeze.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.slice.Tensor,
    aten.select.int,
)
#: How far a value is looked into.
_DEPTH = 12


@rule()
def note_visible_rows(program: Program, node: fx.Node) -> bool:
    """Say of an attention that its mask leaves each query some key, where that is certain.

    Before:  attention(q, k, v, mask = [0, 1, 2, ...] <= place)
    After:   attention(q, k, v, mask, rows_see=True)

    A mask of numbers hides by minus infinity alone. With no negative place, each query sees the
    first key. Places that a cache is written at are not negative: PyTorch raises otherwise.
    """
    if not _is_open(node):
        return False
    mask = node.args[3]
    if not isinstance(mask, fx.Node) or largest_of_rows(program, mask) == -torch.inf:
        return False
    for user in list(mask.users):  # a mask is looked through once, for all layers
        if _is_open(user) and user.args[3] is mask:
            replace(program, user, ops.attention, (*user.args, True))
            program.graph.erase_node(user)
    return True


def _is_open(node: fx.Node) -> bool:
    """Tell whether nothing is said of the rows of an attention's mask."""
    return is_call(node, ops.attention) and len(node.args) == 7 and not node.args[4]


def largest_of_rows(program: Program, mask: fx.Node) -> float:
    """Return a number that some key of each row reaches; minus infinity where none is known.

    Of a boolean mask: zero where each row is known to leave some key.
    """
    return _largest(program, mask, _DEPTH, {})


#: What is known of masks, each looked into so many ops deep.
_Known = dict[tuple[fx.Node, int], float]


def _largest(program: Program, mask: fx.Node, depth: int, known: _Known) -> float:
    if (mask, depth) not in known:
        known[mask, depth] = _worked_out(program, mask, depth, known)
    return known[mask, depth]


def _worked_out(program: Program, mask: fx.Node, depth: int, known: _Known) -> float:
    constant = program.constant(mask)
    if constant is not None:
        return _of_constant(constant)
    if mask.meta["val"].dtype == torch.bool:
        return 0.0 if _sees_first_key(program, mask) else -torch.inf
    least = interval_of(program, mask).low
    if least > -torch.inf or depth == 0 or not mask.meta["val"].is_floating_point():
        return least
    found = _of_sources(program, mask, depth - 1, known)
    return found if found >= -torch.finfo(mask.meta["val"].dtype).max else -torch.inf


def _of_constant(value: torch.Tensor) -> float:
    if value.numel() == 0 or value.device.type == "meta":
        return -torch.inf
    value = value.detach()
    if value.dtype == torch.bool:
        return 0.0 if bool(value.any(-1).all()) else -torch.inf
    least = float(value.amax(-1).min())
    return least if least == least else -torch.inf  # NaN hides nothing, and says nothing


def _of_sources(program: Program, mask: fx.Node, depth: int, known: _Known) -> float:
    """Look for the key of each row in what a mask is made of; rows are broadcast whole."""

    def of(value: Any) -> float:
        return _largest(program, value, depth, known) if isinstance(value, fx.Node) else -torch.inf

    if is_call(mask, aten._to_copy.default, aten.clone.default, aten.expand.default):
        return of(mask.args[0])
    if is_call(mask, *_OF_ROWS) and _keeps_rows(mask):
        return of(mask.args[0])
    if is_call(mask, aten.where.self):
        seen = of(mask.args[0])
        return interval_of(program, mask.args[1]).low if seen > -torch.inf else seen
    if is_call(mask, aten.add.Tensor) and not mask.kwargs:
        a, b = mask.args
        return max(
            of(a) + interval_of(program, b).low,
            of(b) + interval_of(program, a).low,
        )
    if is_call(mask, aten.triu.default) and len(mask.args) > 1:  # zero below the diagonal
        return 0.0 if isinstance(mask.args[1], int) and mask.args[1] > 0 else -torch.inf
    return -torch.inf


def _keeps_rows(node: fx.Node) -> bool:
    """Tell whether a move leaves the last axis, a row of keys, as it is."""
    before, after = shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    if is_call(node, aten.select.int, aten.slice.Tensor, aten.unsqueeze.default):
        axis = node.args[1] if len(node.args) > 1 else 0
        rank = len(before) + is_call(node, aten.unsqueeze.default)
        if axis % rank == rank - 1:  # type: ignore[operator]
            return False
    return bool(after) and same_extents(before[-1:], after[-1:])


def _sees_first_key(program: Program, mask: fx.Node) -> bool:
    if is_call(mask, aten.expand.default, aten.unsqueeze.default):
        source: Any = mask.args[0]
        if not same_extents(shape_of(source)[-1:], shape_of(mask)[-1:]):
            return False
        return _sees_first_key(program, source)
    if is_call(mask, aten.le.Tensor):
        keys, place = mask.args
    elif is_call(mask, aten.ge.Tensor):
        place, keys = mask.args
    else:
        return False
    if not _starts_at_zero(program, keys):
        return False
    return shape_of(place)[-1:] == (1,) and is_not_negative(program, place)  # type: ignore[arg-type]


def _starts_at_zero(program: Program, keys: Any) -> bool:
    """Tell whether each row of some places holds one that is not above zero."""
    while is_call(keys, *_OF_ROWS) and _keeps_rows(keys):
        keys = keys.args[0]
    if is_call(keys, aten.arange.default):
        return len(keys.args) == 1
    if is_call(keys, aten.arange.start_step):
        return bool(keys.args[0] == 0)
    if is_call(keys, torch.ops.prims.iota.default):
        return bool(keys.kwargs.get("start", 0) == 0)
    constant = program.constant(keys)
    if constant is None or constant.ndim == 0 or constant.is_floating_point():
        return False
    return constant.numel() > 0 and bool((constant.amin(-1) <= 0).all())


def is_not_negative(program: Program, value: Any, depth: int = _DEPTH) -> bool:
    """Tell whether no element of an integer value can be below zero."""
    if isinstance(value, int):
        return value >= 0
    if not isinstance(value, fx.Node) or depth == 0:
        return False
    constant = program.constant(value)
    if constant is not None:
        return constant.numel() > 0 and bool((constant >= 0).all())
    if value.op == "placeholder":
        return any(_is_place(program, user, value) for user in value.users)
    if is_call(value, aten._to_copy.default):
        return not value.meta["val"].is_floating_point() and is_not_negative(
            program, value.args[0], depth - 1
        )
    if is_call(value, *_MOVES):
        return is_not_negative(program, value.args[0], depth - 1)
    if is_call(value, aten.arange.default):
        return True
    if is_call(value, aten.arange.start_step):
        first, _, step = (*value.args, 1)[:3]
        return (
            first >= 0 and step >= 0 if isinstance(first, int) and isinstance(step, int) else False
        )
    if is_call(value, torch.ops.prims.iota.default):
        first, step = (
            value.kwargs.get(name, place) for place, name in enumerate(("start", "step"))
        )
        return isinstance(first, int) and isinstance(step, int) and first >= 0 and step >= 0
    if is_call(value, aten.add.Tensor) and not value.kwargs:
        return all(is_not_negative(program, arg, depth - 1) for arg in value.args)
    return False


def _is_place(program: Program, user: fx.Node, value: fx.Node) -> bool:
    """Tell whether a cache is written at ``value``, or at places that start there."""
    if is_call(user, ops.update_cache):
        return user.args[2] is value
    if is_call(user, aten.index_copy.default):
        return user.args[2] is value
    if is_call(user, aten.add.Tensor) and not user.kwargs:
        (other,) = [arg for arg in user.args if arg is not value] or [value]
        constant = program.constant(other) if isinstance(other, fx.Node) else None
        if constant is None or not constant.numel() or int(constant.min()) != 0:
            return False
        return any(_is_place(program, next_user, user) for next_user in user.users)
    return False
