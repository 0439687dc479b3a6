"""Biases of attention's projections, moved to where they cost nothing.

The builder joins the q, k and v projections into one product that can feed attention directly, but
a bias between them costs a kernel each, and one more for each of the others. Two of the three are
not needed there, and the third costs less behind the split into heads:

- Softmax does not change when all its inputs are shifted, and a bias on the keys shifts all scores
  of a query alike: the key bias has no effect.
- The weights of softmax sum to one, so a bias on the values is a constant added to attention's
  output, and goes through the output projection into that projection's own bias.

Measured with tensorrt_rtx 1.7.1.116 for SM89 in FP16: BERT-base with real biases has 9 kernels a
layer instead of 11.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.capture.symbols import same_extents
from singlecard.passes.rule import is_call, only_user, rule, same_shape, shape_of

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)


@dataclass(frozen=True)
class Biased:
    """A projection with a constant bias: the node that adds it, and the bias."""

    node: fx.Node
    bias: torch.Tensor


def _is_swap_of_sequence_and_heads(node: Any) -> bool:
    """transpose(1, 2) of four axes, or the same as a permute."""
    if is_call(node, aten.transpose.int) and len(shape_of(node)) == 4:
        return sorted(axis % 4 for axis in node.args[1:3]) == [1, 2]
    if is_call(node, aten.permute.default):
        return [axis % len(node.args[1]) for axis in node.args[1]] == [0, 2, 1, 3]
    return False


def _before_heads(node: Any) -> fx.Node | None:
    """Return x where node is x [B, S, N * H] seen as [B, N, S, H], used by attention alone."""
    if not _is_swap_of_sequence_and_heads(node) or only_user(node) is None:
        return None
    view = node.args[0]
    if not is_call(view, *_VIEWS) or only_user(view) is None:
        return None
    source = view.args[0]
    before, after = shape_of(source), shape_of(view)
    if len(before) == 3 and same_extents(before[:2], after[:2]) and only_user(source) is not None:
        return source  # type: ignore[no-any-return]
    return None


def _biased(program: Program, node: Any) -> Biased | None:
    """Recognize linear(x, w, b) and x + b with a constant vector b."""
    if is_call(node, aten.linear.default) and len(node.args) > 2:
        bias = program.constant(node.args[2])
    elif is_call(node, aten.add.Tensor) and not node.kwargs and _keeps_first(node):
        bias = program.constant(node.args[1])
    else:
        return None
    if bias is None or bias.ndim != 1 or bias.shape[0] != shape_of(node)[-1]:
        return None
    return Biased(node, bias)


def _keeps_first(node: fx.Node) -> bool:
    """Tell whether a sum has the type and shape of its first operand."""
    first: Any = node.args[0]
    known = isinstance(first, fx.Node) and first.meta["val"].dtype == node.meta["val"].dtype
    return known and same_shape(first, node)


def _without_bias(program: Program, biased: Biased) -> None:
    node = biased.node
    if is_call(node, aten.linear.default):
        node.args = node.args[:2]
    else:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        program.graph.erase_node(node)


@rule()
def push_bias_through_split(program: Program, node: fx.Node) -> bool:
    """split(x + b) for attention   becomes   split(x), and each part plus its part of b."""
    if not is_call(node, *_SPLITS):
        return False
    if any(user.target is not operator.getitem for user in node.users):
        return False
    parts = {user.args[1]: user for user in node.users}
    pieces = node.meta["val"]
    axis = node.args[2] if len(node.args) > 2 else 0
    if axis not in (-1, len(shape_of(node.args[0])) - 1):  # type: ignore[arg-type]
        return False
    biased = _biased(program, node.args[0])
    if biased is None or only_user(biased.node) is not node:
        return False
    if not len(node.users) == len(parts) == len(pieces):
        return False
    if not any(_feeds_attention(part) for part in parts.values()):
        return False
    start = 0
    for place, piece in enumerate(pieces):
        part, width = parts[place], int(piece.shape[-1])
        bias = program.new_constant(part, biased.bias[start : start + width], biased.node)
        with program.graph.inserting_after(part):
            shifted = program.graph.call_function(aten.add.Tensor, (part, bias))
        shifted.meta = dict(part.meta)
        part.replace_all_uses_with(shifted, _all_but(shifted))
        start += width
    _without_bias(program, biased)
    return True


def _all_but(node: fx.Node) -> Callable[[fx.Node], bool]:
    return lambda user: user is not node


def _feeds_attention(part: fx.Node) -> bool:
    view = only_user(part)
    swap = only_user(view)
    return swap is not None and is_call(only_user(swap), ops.attention)


@rule()
def drop_key_bias(program: Program, node: fx.Node) -> bool:
    """attention(q, heads(linear(x, w, b)), v)   becomes   attention(q, heads(linear(x, w)), v)."""
    if not is_call(node, ops.attention):
        return False
    biased = _biased(program, _before_heads(node.args[1]))
    if biased is None:
        return False
    _without_bias(program, biased)
    return True


@rule()
def move_query_bias(program: Program, node: fx.Node) -> bool:
    """attention(heads(x + b), k, v)   becomes   attention(heads(x) + heads(b), k, v)."""
    return is_call(node, ops.attention) and _behind_heads(program, node, 0)


def _behind_heads(program: Program, node: fx.Node, place: int) -> bool:
    """Add the bias of one of attention's operands behind its split into heads."""
    operand: Any = node.args[place]
    biased = _biased(program, _before_heads(operand))
    if biased is None:
        return False
    heads, width = shape_of(operand)[1], shape_of(operand)[3]
    _without_bias(program, biased)
    bias = program.new_constant(node, biased.bias.reshape(1, heads, 1, width), operand)
    with program.graph.inserting_before(node):
        shifted = program.graph.call_function(aten.add.Tensor, (operand, bias))
    shifted.meta = dict(operand.meta)
    node.args = (*node.args[:place], shifted, *node.args[place + 1 :])
    return True


@rule(rounds=True)
def move_value_bias(program: Program, node: fx.Node) -> bool:
    """linear(merge(attention(q, k, heads(v + b))), w, c)

    becomes   linear(merge(attention(q, k, heads(v))), w, c + w @ b).

    Not where a mask may hide a row altogether: that row is zero, its weights do not sum to one.
    """
    if not is_call(node, ops.attention) or _may_hide_rows(node):
        return False
    return _through_projection(program, node)


@rule()
def move_rest_of_value_bias(program: Program, node: fx.Node) -> bool:
    """attention(q, k, heads(v + b))   becomes   attention(q, k, heads(v) + heads(b))."""
    return is_call(node, ops.attention) and _behind_heads(program, node, 2)


def _may_hide_rows(node: fx.Node) -> bool:
    """Tell whether an attention's mask may leave a query without any key."""
    return node.args[3] is not None and node.args[7:8] != (True,)


def _through_projection(program: Program, node: fx.Node) -> bool:
    biased = _biased(program, _before_heads(node.args[2]))
    swap = only_user(node)
    view = only_user(swap)
    if biased is None or not _is_swap_of_sequence_and_heads(swap) or not is_call(view, *_VIEWS):
        return False
    assert view is not None and swap is not None
    heads, width = shape_of(node)[1], shape_of(node)[3]
    if not same_extents(shape_of(view), (*shape_of(swap)[:2], heads * width)):
        return False
    groups = shape_of(node.args[2])[1]  # type: ignore[arg-type]
    bias = biased.bias.to("cpu", torch.float64).reshape(groups, width)
    bias = bias.repeat_interleave(heads // groups, 0).reshape(-1)
    if not _add_behind_projection(program, view, bias):
        return False
    _without_bias(program, biased)
    return True


def _add_behind_projection(program: Program, merged: fx.Node, bias: torch.Tensor) -> bool:
    """Send a constant on the input of a projection through it, into the projection's bias."""
    projection = only_user(merged)
    if is_call(projection, aten.linear.default):
        assert projection is not None
        weight = program.constant(projection.args[1])  # type: ignore[arg-type]
        if weight is None:
            return False
        old = program.constant(projection.args[2]) if len(projection.args) > 2 else None  # type: ignore[arg-type]
        if old is None and len(projection.args) > 2 and projection.args[2] is not None:
            return False
        new = weight.to("cpu", torch.float64) @ bias
        if old is not None:
            new = new + old.to("cpu", torch.float64)
        constant = program.new_constant(projection, new.to(weight.dtype), projection)
        projection.args = (*projection.args[:2], constant)
        return True
    if is_call(projection, aten.matmul.default):
        assert projection is not None
        weight = program.constant(projection.args[1])  # type: ignore[arg-type]
        biased = _biased(program, only_user(projection))
        if weight is None or weight.ndim != 2 or biased is None:
            return False
        if not is_call(biased.node, aten.add.Tensor):
            return False
        new = bias @ weight.to("cpu", torch.float64) + biased.bias.to("cpu", torch.float64)
        constant = program.new_constant(biased.node, new.to(biased.bias.dtype), biased.node)
        biased.node.args = (projection, constant)
        return True
    return False
