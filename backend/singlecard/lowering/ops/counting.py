"""Counting how many elements have a property."""

from __future__ import annotations

from typing import Any

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, arg, dtype, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.core import Number
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: Elements times ranges: each is compared with each.
MOST_PAIRS = 2**24


def _few_pairs() -> Condition:
    def pairs(call: Call) -> Any:
        x = call.values["self"]
        known = all(isinstance(size, int) for size in x.shape)
        return x.numel() * call.values["bins"] if known else list(x.shape)

    return when(
        f"the shape is known and elements times bins <= {MOST_PAIRS}",
        lambda call: isinstance(pairs(call), int) and pairs(call) <= MOST_PAIRS,
        pairs,
    )


@lowers(aten.histc.default)
@accepts(
    dtype("self").numeric,
    arg("min").known,
    arg("max").known,
    when(
        "min < max, for otherwise the range depends on data",
        lambda call: call.values["min"] < call.values["max"],
        lambda call: (call.values["min"], call.values["max"]),
    ),
    _few_pairs(),
)
def histc(net: Net, self: Tensor, bins: int = 100, min: Number = 0, max: Number = 0) -> Tensor:
    """How many elements fall into each of several ranges of equal width."""
    x = net.cast(net.reshape(self, [1, -1]), torch.float32)
    low, high = (net.scalar(float(value), torch.float32, 2) for value in (min, max))
    share = net.prod(net.sub(x, low), net.scalar(float(bins), torch.float32, 2))
    width = net.scalar(float(max) - float(min), torch.float32, 2)
    place = net.unary("FLOOR", net.binary("DIV", share, width))
    place = net.binary("MIN", place, net.scalar(bins - 1.0, torch.float32, 2))
    over = net.binary("OR", net.binary("LESS", x, low), net.binary("GREATER", x, high))
    each = net.constant(torch.arange(bins, dtype=torch.float32)[:, None])
    hit = net.binary("AND", net.binary("EQUAL", place, each), net.logical_not(over))
    count = net.reduce("SUM", net.cast(hit, torch.int32), [1], False)
    return net.cast(count, net.result.dtype)
