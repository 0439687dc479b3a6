"""Matrix products."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype, rank
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.linear.default)
@accepts(dtype("input").floating)
def linear(net: Net, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias, weight as [out, in]."""
    if input.ndim == 1:
        rows = linear(net, net.unsqueeze(input, 0), weight, bias)
        return net.squeeze(rows, [0])
    product = net.matmul(input, weight, transpose_b=True)
    return product if bias is None else net.sum(product, bias)


@lowers(aten.mm.default, aten.bmm.default)
@accepts(dtype("self").floating)
def mm(net: Net, self: Tensor, mat2: Tensor) -> Tensor:
    """Product of matrices, or of batches of them."""
    return net.matmul(self, mat2)


@lowers(aten.addmm.default)
@accepts(dtype("self").floating, arg("beta").known, arg("alpha").known)
def addmm(
    net: Net, self: Tensor, mat1: Tensor, mat2: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * mat1 @ mat2."""
    product = net.times(net.matmul(mat1, mat2), alpha)
    return product if beta == 0 else net.sum(product, net.times(self, beta))


@lowers(aten.matmul.default)
@accepts(dtype("self").floating, rank("self").between(2, 8), rank("other").between(2, 8))
def matmul(net: Net, self: Tensor, other: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    return net.matmul(self, other)


@lowers(aten.addmv.default)
@accepts(dtype("self").floating, arg("beta").known, arg("alpha").known)
def addmv(
    net: Net, self: Tensor, mat: Tensor, vec: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * mat @ vec."""
    product = net.squeeze(net.matmul(mat, net.unsqueeze(vec, 1)), [1])
    return _added(net, self, product, beta, alpha)


@lowers(aten.addbmm.default)
@accepts(dtype("self").floating, arg("beta").known, arg("alpha").known)
def addbmm(
    net: Net, self: Tensor, batch1: Tensor, batch2: Tensor, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * self + alpha * the sum of batch1 @ batch2 over the batch."""
    product = net.reduce("SUM", net.matmul(batch1, batch2), [0], False)
    return _added(net, self, product, beta, alpha)


def _added(net: Net, x: Tensor, product: Tensor, beta: Number, alpha: Number) -> Tensor:
    # With beta = 0, PyTorch does not look at x at all: NaN in it does not spread.
    product = net.times(product, alpha)
    return product if beta == 0 else net.sum(net.times(x, beta), product)


@lowers(aten._trilinear.default)
@accepts(dtype("i1").floating, arg("unroll_dim").known)
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
    product = net.prod(net.prod(factors[0], factors[2]), factors[1])
    return net.reduce("SUM", product, sumdim, False)
