"""What a kernel computes with: the type that its multiplications have, and how many there are.

Only matrix products, convolutions and attention have an answer; what the builder generates for
the rest ("kgen") is bound by memory. Extents are those of the kernel, padding included: the
builder gives a first convolution 4 input channels where the model has 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import permutations

from singlecard.engine.plan_log import KernelTensor, LogEntry

_FLOATING = ("Float", "BFloat16", "Half")


def arithmetic_of(entry: LogEntry) -> tuple[str | None, int | None]:
    """Return the type a kernel multiplies in and its floating point operations.

    A multiply-add counts as two. The type is that of both operands; where they differ (weights
    kept in Int8 or Int4 and read by a Half product) it is the wider one, in which the kernel
    computes. Operations are None where an extent is dynamic or the operands are not to be told
    from the list; causal attention counts as full. Both are None for a kernel without products.
    """
    if re.match(r"_gem[mv]_mha", entry.name):
        return entry.inputs[0].dtype if entry.inputs else None, _attention_operations(entry)
    if entry.kind == "deconv" and entry.inputs:
        return _answer(entry, _deconvolution(entry))
    if (entry.kind == "correlation" or "Corr" in entry.steps) and entry.inputs and entry.outputs:
        return _answer(entry, _convolution(entry))
    if entry.kind == "gemm" or "Fc" in entry.steps:
        return _answer(entry, _product(entry))
    return None, None


#: Both operands, and the number of multiplications if it can be told.
_Operands = tuple[KernelTensor, KernelTensor, int | None]


def _answer(entry: LogEntry, operands: _Operands | None) -> tuple[str | None, int | None]:
    if operands is None:
        return (entry.inputs[0].dtype if entry.inputs else None), None
    a, b, count = operands
    types = {a.dtype, b.dtype}
    dtype = a.dtype if len(types) == 1 else next((t for t in _FLOATING if t in types), a.dtype)
    return dtype, None if count is None else 2 * count


def _count(*extents: int) -> int | None:
    """Return the product of extents; None if one is dynamic."""
    return None if -1 in extents else math.prod(extents)


def _product(entry: LogEntry) -> _Operands | None:
    """Find A (M x K) and B (K x N) for an output (M x N) among all tensors, the largest that fit.

    Their order in the list says nothing: a residual may come first, and a 1x1 convolution turned
    into a product has its weights on the left. A dynamic extent must agree too, as written.
    """
    if entry.steps.count("Fc") > 1:  # what lies between two products is not listed
        return None
    fitting = [
        (a, b, _count(*out.shape, a.shape[-1]))
        for a, b, out in _triples(entry)
        if (a.shape[-2], b.shape[-1]) == out.shape[-2:] and a.shape[-1] == b.shape[-2]
    ]
    return max(fitting, key=_size, default=None)


def _size(operands: _Operands) -> int:
    return sum(abs(math.prod(tensor.shape)) for tensor in operands[:2])


def _triples(entry: LogEntry) -> Iterator[tuple[KernelTensor, KernelTensor, KernelTensor]]:
    matrices = [tensor for tensor in entry.inputs + entry.constants if len(tensor.shape) > 1]
    for out in (tensor for tensor in entry.outputs if len(tensor.shape) > 1):
        for a, b in permutations(matrices, 2):
            yield a, b, out


def _convolution(entry: LogEntry) -> _Operands | None:
    """Weights are (output channels, input channels / groups, kernel...)."""
    x, out = entry.inputs[0], entry.outputs[0]
    weights = _weights(entry, channels=out.shape[1])
    if weights is None:
        return None
    return x, weights, _count(*out.shape, *weights.shape[1:])


def _deconvolution(entry: LogEntry) -> _Operands | None:
    """Weights are (input channels, output channels / groups, kernel...)."""
    x = entry.inputs[0]
    weights = _weights(entry, channels=x.shape[1])
    if weights is None:
        return None
    return x, weights, _count(*x.shape, *weights.shape[1:])


def _weights(entry: LogEntry, channels: int) -> KernelTensor | None:
    """Find the weights: a constant, or after a run-time dequantization the second input.

    A residual that the kernel adds is an input too; it has the output's shape.
    """
    rank = len(entry.inputs[0].shape)
    shapes = {out.shape for out in entry.outputs}
    for group in (entry.constants, entry.inputs[1:]):
        fitting = [
            tensor
            for tensor in group
            if len(tensor.shape) == rank and tensor.shape[0] == channels
            if tensor.shape not in shapes
        ]
        if fitting:
            return max(fitting, key=lambda tensor: math.prod(tensor.shape))
    return None


def _attention_operations(entry: LogEntry) -> int | None:
    """Two products for each query and key, over heads x head size.

    Listed as (queries, transposed keys, values), or with grouped heads as (keys, values, queries).
    """
    if len(entry.inputs) < 3 or len(entry.outputs) != 1:
        return None
    first, second, third = entry.inputs[:3]
    grouped = first.shape == second.shape and len(first.shape) == 4
    keys, values = (first, second) if grouped else (second, third)
    length = values.shape[-2]
    if length not in keys.shape[-2:]:
        return None
    return _count(2, 2, *entry.outputs[0].shape, length)
