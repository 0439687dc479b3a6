"""Ops that change nothing are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from singlecard.capture.layouts import promised, reads_memory
from singlecard.capture.program import Program
from singlecard.passes.rule import forward, is_call, rule, same_shape

aten = torch.ops.aten

_COPIES = (
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.contiguous.default,
)
_SHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.expand.default,
    aten._to_copy.default,
    aten.slice.Tensor,
    aten.permute.default,
    aten.squeeze.dims,
)


@rule()
def drop_copy(program: Program, node: fx.Node) -> bool:
    """x -> clone -> y   becomes   x -> y: memory inside an engine is the builder's business.

    Outside of it an op may read memory itself: the copy in front of one stays.
    """
    if not is_call(node, *_COPIES) or any(reads_memory(user.target) for user in node.users):
        return False
    forward(program, node, node.args[0])  # type: ignore[arg-type]
    return True


@rule()
def drop_identity(program: Program, node: fx.Node) -> bool:
    """x -> view(x.shape) -> y   becomes   x -> y, for ops whose result is their input."""
    if not is_call(node, *_SHAPES):
        return False
    source = node.args[0]
    before, after = source.meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if before.dtype != after.dtype or before.device != after.device:
        return False
    if not same_shape(source, node) or any(reads_memory(user.target) for user in node.users):  # type: ignore[arg-type]
        return False
    if is_call(node, aten.permute.default):
        order = [axis % before.ndim for axis in node.args[1]]  # type: ignore[union-attr]
        if order != sorted(order):
            return False
    forward(program, node, source)  # type: ignore[arg-type]
    return True


@rule()
def drop_restriding(program: Program, node: fx.Node) -> bool:
    """x -> as_strided(x.shape, x.stride()) -> y   becomes   x -> y.

    PyTorch ends the average of a channels-last image so: the strides of axes of one element, which
    say nothing, are to tell what comes behind that the layout is kept.
    """
    if not is_call(node, aten.as_strided.default, aten.as_strided_copy.default):
        return False
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    before, after = source.meta["val"], node.meta["val"]
    strides = next(iter(promised(node)), None) or before.stride()
    # A copy's own strides are contiguous: what it looks at is in its arguments.
    looked_at: Sequence[Any] = node.args[2]  # type: ignore[assignment]
    offset = node.args[3] if len(node.args) > 3 else node.kwargs.get("storage_offset")
    if any(reads_memory(user.target) for user in node.users) or not same_shape(source, node):
        return False
    if offset is not None and offset != before.storage_offset():
        return False
    for size, was, now in zip(after.shape, strides, looked_at, strict=True):
        now = now.meta["val"] if isinstance(now, fx.Node) else now
        if not (statically_known_true(size == 1) or statically_known_true(was == now)):
            return False
    forward(program, node, source)
    return True


@rule()
def merge_views(program: Program, node: fx.Node) -> bool:
    """x -> view -> view -> y   becomes   x -> view -> y."""
    views = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
    if not (is_call(node, *views) and is_call(node.args[0], *views)):
        return False
    inner = node.args[0].args[0]  # type: ignore[union-attr]
    node.target = aten.reshape.default
    node.args = (inner, node.args[1])
    return True
