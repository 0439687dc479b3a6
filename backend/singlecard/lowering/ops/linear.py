"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, arg, dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Products that a matrix product of integers may make, each an element before it is summed.
MOST_PRODUCTS = 2**24


def _products(call: Call, name: str) -> Any:
    """Return how many products integers make, 0 for floats, or the shape where it is not known."""
    factor, result = call.values[name], call.result
    if factor.dtype.is_floating_point:
        return 0
    if not all(isinstance(size, int) for size in (*factor.shape, *result.shape)):
        return list(factor.shape)
    terms = factor.shape[-1]
    # A sum over batches makes more products than its result shows.
    columns = result.shape[-1] if result.ndim > 1 else 1
    return max(result.numel() * terms, factor.numel() * columns)


# TensorRT-RTX 1.7.1.116 multiplies no matrices of integers ("matrix_multiply: first input has type
# Int32"); sums of products element by element are exact, and wrap around as PyTorch's do.
def _numbers(name: str) -> tuple[Condition, ...]:
    few = when(
        f"`{name}` is floating, or of integers that make <= {MOST_PRODUCTS} products",
        lambda call: (
            isinstance(_products(call, name), int) and _products(call, name) <= MOST_PRODUCTS
        ),
        lambda call: _products(call, name),
    )
    return dtype(name).numeric, few


def product(net: Net, a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product over the last two axes, of floats or of integers."""
    if a.dtype.is_floating_point:
        return net.matmul(a, b)
    a, b = net.align(a, b)
    terms = net.prod(net.unsqueeze(a, a.ndim), net.unsqueeze(b, b.ndim - 2))
    return net.reduce("SUM", terms, [terms.ndim - 2], False)


@lowers(aten.linear.default)
@accepts(*_numbers("input"))
def linear(net: Net, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, weight as [out, in]."""
    if input.ndim == 1:
        rows = linear(net, net.unsqueeze(input, 0), weight, bias)
        return net.squeeze(rows, [0])
    if input.dtype.is_floating_point:
        result = net.matmul(input, weight, transpose_b=True)
    else:
        result = product(net, input, net.transpose(weight, 0, 1))
    return result if bias is None else net.sum(result, bias)


@lowers(aten.mm.default, aten.bmm.default)
@accepts(*_numbers("self"))
def mm(net: Net, self: Tensor, mat2: Tensor) -> Tensor:
    """Product of matrices, or of batches of them."""
    return product(net, self, mat2)


@lowers(aten.addmm.default)
@accepts(*_numbers("mat1"), arg("beta").known, arg("alpha").known)
def addmm(
    net: Net, self: Tensor, mat1: Tensor, mat2: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * mat1 @ mat2."""
    scaled = net.times(product(net, mat1, mat2), alpha)
    return scaled if beta == 0 else net.sum(scaled, net.times(self, beta))


@lowers(aten.matmul.default)
@accepts(*_numbers("self"), rank("self").between(2, 8), rank("other").between(2, 8))
def matmul(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    return product(net, self, other)


@lowers(aten.addmv.default)
@accepts(*_numbers("mat"), arg("beta").known, arg("alpha").known)
def addmv(
    net: Net, self: Tensor, mat: Tensor, vec: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * mat @ vec."""
    vector = net.squeeze(product(net, mat, net.unsqueeze(vec, 1)), [1])
    return _added(net, self, vector, beta, alpha)


@lowers(aten.addbmm.default)
@accepts(*_numbers("batch1"), arg("beta").known, arg("alpha").known)
def addbmm(
    net: Net, self: Tensor, batch1: Tensor, batch2: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * the sum of batch1 @ batch2 over the batch."""
    total = net.reduce("SUM", product(net, batch1, batch2), [0], False)
    return _added(net, self, total, beta, alpha)


def _added(net: Net, x: Tensor, total: Tensor, beta: Number, alpha: Number) -> Tensor:
    # With beta = 0, PyTorch does not look at x at all: NaN in it does not spread.
    total = net.times(total, alpha)
    return total if beta == 0 else net.sum(net.times(x, beta), total)


@lowers(aten._trilinear.default)
@accepts(*_numbers("i1"), arg("unroll_dim").known)
def trilinear(
    net: Net,
    i1: Tensor,
    i2: Tensor,
    i3: Tensor,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
    unroll_dim: int = 1,
) -> Tensor:
    """Product of three tensors, summed over axes: what nn.Bilinear is made of."""
    factors = []
    for factor, places in ((i1, expand1), (i2, expand2), (i3, expand3)):
        for place in sorted(places):
            factor = net.unsqueeze(factor, place)
        factors.append(factor)
    terms = net.prod(net.prod(factors[0], factors[2]), factors[1])
    return net.reduce("SUM", terms, sumdim, False)
