"""Masks that are known to leave each query some key, so that no row needs a guard."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.passes.rule import is_call, replace, shape_of

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
#: How far a value is looked into.
_DEPTH = 12


def note_visible_rows(program: Program, node: fx.Node) -> bool:
    """Say of an attention that its mask leaves each query some key, where that is certain.

    Before:  attention(q, k, v, mask = [0, 1, 2, ...] <= place)
    After:   attention(q, k, v, mask, rows_see=True)

    With no negative place, each query sees the first key. Places that a cache is written at are
    not negative: PyTorch raises otherwise.
    """
    if not is_call(node, ops.attention) or len(node.args) != 7:
        return False
    mask = node.args[3]
    if not isinstance(mask, fx.Node) or not _sees_first_key(program, mask):
        return False
    replace(program, node, ops.attention, (*node.args, True))
    program.graph.erase_node(node)
    return True


def _sees_first_key(program: Program, mask: fx.Node) -> bool:
    if is_call(mask, aten.expand.default, aten.unsqueeze.default):
        source: Any = mask.args[0]
        if shape_of(source)[-1:] != shape_of(mask)[-1:]:
            return False
        return _sees_first_key(program, source)
    if is_call(mask, aten.le.Tensor):
        keys, place = mask.args
    elif is_call(mask, aten.ge.Tensor):
        place, keys = mask.args
    else:
        return False
    constant = program.constant(keys)  # type: ignore[arg-type]
    if constant is None or constant.ndim == 0 or constant.is_floating_point():
        return False
    if not bool((constant.amin(-1) <= 0).all()):
        return False
    return shape_of(place)[-1:] == (1,) and is_not_negative(program, place)  # type: ignore[arg-type]


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
