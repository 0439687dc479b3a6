"""Running sums, products and extremes along one axis."""

from __future__ import annotations

from collections.abc import Callable

import torch

from singlecard.lowering.conditions import Condition, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten

#: What a scan carries from place to place: one tensor, or values with their indices.
Carried = tuple[Tensor, ...]

#: A scan of n elements takes log2(n) rounds of layers.
LONGEST_SCAN = 4096


@lowers(aten.cumsum.default)
def cumsum(net: Net, self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Running sum along one axis."""
    x = net.cast(self, net.result.dtype)
    return net.cumulative(x, dim) if x.ndim else x


def _fits_a_scan() -> Condition:
    def extent(call: object) -> int:
        values = call.values  # type: ignore[attr-defined]
        x = values["self"]
        size = x.shape[values["dim"]] if x.ndim else 1
        return size if isinstance(size, int) else LONGEST_SCAN + 1

    return when(
        f"the axis has a known extent of at most {LONGEST_SCAN}",
        lambda call: extent(call) <= LONGEST_SCAN,
        lambda call: list(call.values["self"].shape),
    )


def scan(
    net: Net, values: Carried, dim: int, combine: Callable[[Carried, Carried], Carried]
) -> Carried:
    """Combine each element with all before it, in log2(n) rounds of doubling reach.

    After W. D. Hillis and G. L. Steele, "Data parallel algorithms" (1986).
    """
    if not values[0].ndim:
        return values
    extent, reach = values[0].shape[dim], 1
    while reach < extent:
        head = [net.narrow(value, dim, 0, reach) for value in values]
        before = tuple(net.narrow(value, dim, 0, extent - reach) for value in values)
        after = tuple(net.narrow(value, dim, reach, extent - reach) for value in values)
        joined = combine(before, after)
        values = tuple(net.concat([a, b], dim) for a, b in zip(head, joined, strict=True))
        reach *= 2
    return values


@lowers(aten.cumprod.default)
@accepts(_fits_a_scan())
def cumprod(net: Net, self: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """Running product along one axis."""
    x = net.cast(self, net.result.dtype)
    return scan(net, (x,), dim, lambda a, b: (net.prod(a[0], b[0]),))[0]


def _running_extreme(net: Net, x: Tensor, dim: int, operation: str) -> list[Tensor]:
    numbers = net.cast(x, torch.int32) if x.dtype == torch.bool else x
    extent = x.shape[dim] if x.ndim else 1
    shape = [1] * x.ndim
    if x.ndim:
        shape[dim] = extent
    places = net.constant(torch.arange(extent).reshape(shape))

    def later(a: Carried, b: Carried) -> Carried:
        wins = net.binary("OR", net.binary(operation, b[0], a[0]), net.binary("EQUAL", b[0], a[0]))
        if x.dtype.is_floating_point:
            wins = net.binary("OR", wins, net.unary("ISNAN", b[0]))
            numeric = net.logical_not(net.unary("ISNAN", a[0]))
            stays = net.binary("AND", numeric, wins)
            wins = net.binary("OR", stays, net.unary("ISNAN", b[0]))
        return net.where(wins, b[0], a[0]), net.where(wins, b[1], a[1])

    start = (numbers, net.expand(places, net.sizes(x)))
    values, indices = scan(net, start, dim, later)
    return [net.cast(values, x.dtype), indices]


@lowers(aten.cummax.default)
@accepts(_fits_a_scan())
def cummax(net: Net, self: Tensor, dim: int) -> list[Tensor]:
    """Largest so far along one axis, and the last index that has it."""
    return _running_extreme(net, self, dim, "GREATER")


@lowers(aten.cummin.default)
@accepts(_fits_a_scan())
def cummin(net: Net, self: Tensor, dim: int) -> list[Tensor]:
    """Smallest so far along one axis, and the last index that has it."""
    return _running_extreme(net, self, dim, "LESS")


@lowers(aten.logcumsumexp.default)
@accepts(_fits_a_scan())
def logcumsumexp(net: Net, self: Tensor, dim: int) -> Tensor:
    """Logarithm of the running sum of exponentials, without overflow."""
    x = net.cast(self, torch.float32)

    def add(a: Carried, b: Carried) -> Carried:
        top = net.binary("MAX", a[0], b[0])
        # Where both are infinite their difference is no number, and the larger is the answer.
        endless = net.unary("ISINF", top)
        base = net.where(endless, net.scalar(0.0, x.dtype), top)
        total = net.sum(*(net.unary("EXP", net.sub(v[0], base)) for v in (a, b)))
        return (net.where(endless, top, net.sum(base, net.unary("LOG", total))),)

    return net.cast(scan(net, (x,), dim, add)[0], net.result.dtype)
