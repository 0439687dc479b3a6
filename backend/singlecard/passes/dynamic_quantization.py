"""Quantization by scales that are computed for each call: it stays in PyTorch, and says why.

In an engine its intermediate values would be wrong: sums of integers leave FP16's range before
their scale brings them back, and the smallest scales are zero in FP16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.lowering.call import op_name
from singlecard.lowering.table import REASON
from singlecard.passes.rule import rule

aten = torch.ops.aten

DYNAMIC = (
    "is part of dynamic quantization, whose scales are computed at run time: TensorRT takes scales "
    "that are known when the engine is built; quantize weights only, or calibrate static scales"
)

_NAMED = (
    "quantized_decomposed.choose_qparams",
    "quantized_decomposed.quantize_per_token",
    "quantized_decomposed.dequantize_per_token",
    "torchao.choose_qparams",
)
_RANGES = (aten.amin.default, aten.amax.default)

#: What goes from the range of a tensor to its codes.
_ARITHMETIC = frozenset(
    {
        aten._to_copy.default,
        aten.abs.default,
        aten.add.Tensor,
        aten.amax.default,
        aten.amin.default,
        aten.clamp.default,
        aten.clamp.Tensor,
        aten.div.Tensor,
        aten.full_like.default,
        aten.maximum.default,
        aten.minimum.default,
        aten.mul.Tensor,
        aten.neg.default,
        aten.reciprocal.default,
        aten.round.default,
        aten.rsub.Scalar,
        aten.sub.Tensor,
        aten.unsqueeze.default,
        aten.view.default,
        aten.where.self,
    }
)
#: What goes from a product of integers to numbers.
_BEHIND = (
    aten._to_copy.default,
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.sub.Tensor,
    aten.unsqueeze.default,
    aten.view.default,
)


@rule()
def note_dynamic(program: Program, node: fx.Node) -> bool:
    """Say of ops that quantize by scales of the moment why they stay in PyTorch.

    These are ops of that meaning; what lies between the range of a tensor and its INT8 codes; and
    what lies between a product of integers and the scales that it is multiplied with. The graph
    is not changed.
    """
    if str(node.target).startswith(_NAMED):
        _note([node])
    elif node.target == aten._int_mm.default:
        _note([node, *_integers_before(node), *_scaling(node)])
    elif node.target == aten._to_copy.default and node.meta["val"].dtype == torch.int8:
        behind = _behind(node)
        if any(item.target in _RANGES for item in behind):
            _note([node, *behind])
    return False


def _note(nodes: list[fx.Node]) -> None:
    for node in nodes:
        node.meta[REASON] = f"{op_name(node)} {DYNAMIC}"


def _behind(node: fx.Node) -> list[fx.Node]:
    """Return the arithmetic that makes codes, from the tensor whose range is taken on."""
    found: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        for arg in waiting.pop().all_input_nodes:
            if arg.target in _ARITHMETIC and arg not in found:
                found[arg] = None
                waiting.append(arg)
    sources = {_unviewed(item.args[0]) for item in found if item.target in _RANGES}
    reached: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        for arg in waiting.pop().all_input_nodes:
            if arg in found and arg not in reached and _unviewed(arg) not in sources:
                reached[arg] = None
                waiting.append(arg)
    return list(reached)


def _unviewed(value: object) -> object:
    while isinstance(value, fx.Node) and value.target == aten.view.default:
        value = value.args[0]
    return value


def _integers_before(node: fx.Node) -> Iterator[fx.Node]:
    waiting, seen = [node], {node}
    while waiting:
        for arg in waiting.pop().all_input_nodes:
            if arg in seen:
                continue
            seen.add(arg)
            if arg.op == "call_function" and not arg.meta["val"].is_floating_point():
                yield arg
                waiting.append(arg)


def _scaling(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what is computed from a product of integers, up to its second factor."""
    waiting, seen = [(node, 2)], set[tuple[fx.Node, int]]()
    while waiting:
        item, factors = waiting.pop()
        if (item, factors) in seen:
            continue
        seen.add((item, factors))
        for user in item.users:
            if user.target not in _BEHIND:
                continue
            left = factors
            if user.target == aten.mul.Tensor and user.meta["val"].is_floating_point():
                left -= 1
            yield user
            if left:
                waiting.append((user, left))
