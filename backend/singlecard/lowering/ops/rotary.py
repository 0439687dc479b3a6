"""Rotary position embeddings."""

from __future__ import annotations

from singlecard.capture import ops
from singlecard.lowering.conditions import dtype, rank
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor


@lowers(ops.rotary)
@accepts(dtype("input").floating, rank("input").between(1, 6))
def rotary(net: Net, input: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Pairs of elements, neighbours or from the two halves of the last axis, turned by angles.

    Written out: the builder fuses it to the same kernels as the rotary layer (docs/decoding.md),
    and the layer takes no more than one angle for each place of a sequence.
    """
    last = input.ndim - 1
    half = input.shape[last] // 2
    if interleaved:
        even, odd = (net.narrow(input, last, start, half, 2) for start in (0, 1))
        pair = [net.unsqueeze(x, last + 1) for x in (net.negate(odd), even)]
        turned = net.reshape(net.concat(pair, last + 1), net.sizes(input))
    else:
        first, second = (net.narrow(input, last, start, half) for start in (0, half))
        turned = net.concat([net.negate(second), first], last)
    return net.sum(net.prod(input, cos), net.prod(turned, sin))
