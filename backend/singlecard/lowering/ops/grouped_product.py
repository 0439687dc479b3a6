"""The product of a mixture of experts: rows sorted by group, each times its group's matrix."""

from __future__ import annotations

import torch

from singlecard.capture import ops as own
from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor


@lowers(own.grouped_mm)
@accepts(
    dtype("input").floating,
    arg("input").static_shape,
    arg("weight").static_shape,
    dtype("offsets").integral,
)
def grouped_mm(net: Net, input: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Rows up to each offset times that group's matrix; zero behind the last.

    Few rows fetch their matrices. Many rows are multiplied with all of them, and keep the product
    with their own: TensorRT cannot bound a product by a number that it computes.
    """
    rows, groups = input.shape[0], weight.shape[0]
    place = net.iota(rows)
    ends = net.unsqueeze(net.cast(offsets, torch.int64), 1)
    passed = net.logical_not(net.binary("LESS", place, ends))  # [groups, rows]
    if rows > groups:
        first = net.constant(torch.ones(1, rows, dtype=torch.bool))
        before = net.concat([first, net.narrow(passed, 0, 0, groups - 1)], 0)
        member = net.binary("AND", before, net.logical_not(passed))
        products = net.matmul(net.unsqueeze(input, 0), weight)
        nothing = net.scalar(0.0, input.dtype, 3)
        kept = net.where(net.unsqueeze(member, 2), products, nothing)
        return net.reduce("SUM", kept, [0], False)
    group = net.reduce("SUM", net.cast(passed, torch.int32), [0], False)
    inside = net.binary("LESS", group, net.scalar(groups, torch.int32, 1))
    nearest = net.binary("MIN", group, net.scalar(groups - 1, torch.int32, 1))
    matrices = net.gather(weight, nearest, 0)
    products = net.squeeze(net.matmul(net.unsqueeze(input, 1), matrices), [1])
    return net.where(net.unsqueeze(inside, 1), products, net.scalar(0.0, input.dtype, 2))
