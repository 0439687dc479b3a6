"""Writing new keys and values into a cache, in place."""

from __future__ import annotations

import torch

from singlecard.capture import ops
from singlecard.lowering.conditions import dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor


@lowers(ops.update_cache)
@accepts(
    dtype("cache").floating,
    rank("cache").between(4, 4),
    when(
        "the cache's heads, length and width are known",
        lambda call: all(isinstance(size, int) for size in call.values["cache"].shape[1:]),
        lambda call: list(call.values["cache"].shape),
    ),
    dtype("position").integral,
)
def update_cache(net: Net, cache: Tensor, update: Tensor, position: Tensor) -> Tensor:
    """A cache [B, N, T, H] with an update [B, N, S, H] written from a position on.

    The layer's result lies where the cache lies. It does not look at its index: one outside of the
    cache, for which PyTorch raises, is held inside, so that no other memory is written to.
    """
    one = net.reshape(position, [1])
    free = net.size_math("SUB", net.size(cache, 2), net.size(update, 2))
    highest = _as_vector(net, free, one.dtype)
    held = net.binary("MAX", net.binary("MIN", one, highest), _as_vector(net, 0, one.dtype))
    rows = net.expand(net.cast(held, torch.int32), [net.size(cache, 0)])
    return net.update_cache(cache, net.cast(update, cache.dtype), rows)


def _as_vector(net: Net, size: Size, kind: torch.dtype) -> Tensor:
    if isinstance(size, int):
        return net.constant(torch.tensor([size], dtype=kind))
    return net.cast(size, kind)
