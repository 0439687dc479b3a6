"""Writes that combine many updates: put in order first, so that those of one place are neighbours.

To hold every place against every update costs their product. In order, updates of one place are
added up by doubling (W. D. Hillis and G. L. Steele, "Data parallel algorithms", 1986): the cost is
the number of updates, times its logarithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.ops.sorting import put_in_order
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

#: Updates that can be put in order: beyond that, parts of them would be too many for each other.
MOST_UPDATES = 2**16


def _line(x: Tensor, axis: int, length: int) -> list[Size]:
    return [length if other == axis else 1 for other in range(x.ndim)]


def combine_in_order(
    net: Net,
    index: Tensor,
    updates: Tensor,
    axis: int,
    places: int,
    operation: str,
    neutral: Number,
) -> tuple[Tensor, Tensor]:
    """Return the combined updates of each place on one axis, and how many there are.

    Args:
        net: the network.
        index: int64 [E], the place of each slice of the updates.
        updates: with a known extent E on ``axis``.
        axis: the axis that the index is of.
        places: how many places there are on it.
        operation: SUM, PROD, MAX or MIN.
        neutral: what stands at a place without updates.
    """
    count = index.shape[0]
    key, order = put_in_order(net, index, 0, False)
    totals = net.gather(updates, order, axis)
    ones = net.constant(torch.ones(count, dtype=torch.int32))
    step = 1
    while step < count:
        alike = net.binary(
            "EQUAL", net.narrow(key, 0, step, count - step), net.narrow(key, 0, 0, count - step)
        )
        same = net.concat([net.constant(torch.zeros(step, dtype=torch.bool)), alike], 0)
        mask = net.reshape(same, _line(totals, axis, count))
        totals = _with_earlier(net, totals, axis, step, mask, operation, neutral)
        ones = _with_earlier(net, ones, 0, step, same, "SUM", 0)
        step *= 2
    # The last update of each place has the sum of all; the others go to a place behind the last.
    differs = net.logical_not(
        net.binary("EQUAL", net.narrow(key, 0, 1, count - 1), net.narrow(key, 0, 0, count - 1))
    )
    is_last = net.concat([differs, net.constant(torch.ones(1, dtype=torch.bool))], 0)
    target = net.where(is_last, key, net.scalar(places, torch.int64))
    whole = _put(net, totals, axis, target, places, neutral)
    return whole, _put(net, ones, 0, target, places, 0)


def _with_earlier(
    net: Net, x: Tensor, axis: int, step: int, same: Tensor, operation: str, neutral: Number
) -> Tensor:
    """Combine each slice with the one ``step`` before it, where both are of one place."""
    sizes: list[Size] = list(net.sizes(x))
    sizes[axis] = step
    nothing = net.scalar(neutral, x.dtype, x.ndim)
    earlier = net.narrow(x, axis, 0, x.shape[axis] - step)
    earlier = net.concat([net.expand(nothing, sizes), earlier], axis)
    return net.binary(operation, x, net.where(same, earlier, nothing))


def _put(net: Net, x: Tensor, axis: int, target: Tensor, places: int, neutral: Number) -> Tensor:
    sizes: Sequence[Size] = net.sizes(x)
    base = [places + 1 if other == axis else size for other, size in enumerate(sizes)]
    empty = net.expand(net.scalar(neutral, x.dtype, x.ndim), base)
    index = net.expand(net.reshape(target, _line(x, axis, x.shape[axis])), sizes)
    return net.narrow(net.scatter(empty, index, x, "ELEMENT", axis), axis, 0, places)
