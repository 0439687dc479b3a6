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


def _repeated_pairs(call: Call) -> Any:
    pairs = (call.values["repeats"].shape[0], call.values["output_size"])
    return pairs[0] * pairs[1] if all(isinstance(size, int) for size in pairs) else pairs


@lowers(aten.repeat_interleave.Tensor)
@accepts(
    dtype("repeats").integral,
    when(
        f"output_size is given, and output_size times repeats <= {MOST_PAIRS}",
        lambda call: isinstance(_repeated_pairs(call), int) and _repeated_pairs(call) <= MOST_PAIRS,
        _repeated_pairs,
    ),
)
def repeat_interleave(net: Net, repeats: Tensor, output_size: int | None = None) -> Tensor:
    """Each place as often as it is to be repeated: how many places have ended before."""
    assert output_size is not None
    ends = net.unsqueeze(net.cumulative(repeats, 0), 0)
    places = net.constant(torch.arange(output_size).to(repeats.dtype).unsqueeze(1))
    ended = net.logical_not(net.binary("GREATER", ends, places))
    return net.reduce("SUM", net.cast(ended, net.result.dtype), [1], False)
