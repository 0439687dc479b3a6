"""Convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.conditions import arg, dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.convolution.default)
@accepts(
    dtype("input").floating,
    rank("input").between(4, 5),
    arg("transposed").one_of(False),
)
def convolution(
    net: Net,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """Cross-correlation in two or three dimensions."""
    return net.convolution(
        input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


@lowers(aten.max_pool2d_with_indices.default)
@accepts(
    dtype("self").floating,
    rank("self").between(4, 4),
    arg("dilation").one_of([1, 1], [1], 1),
    when(
        "its indices are not used",
        lambda call: all(user.args[1] == 0 for user in call.node.users),
        lambda call: "a use of them",
    ),
)
def max_pool2d_with_indices(
    net: Net,
    self: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> list[Tensor | None]:
    """Maximum over windows; the indices are not computed."""
    window = _pair(kernel_size)
    pooled = net.pool(
        "MAX",
        self,
        window,
        stride=_pair(stride) if stride else window,
        padding=_pair(padding),
        ceil_mode=ceil_mode,
    )
    return [pooled, None]


def _pair(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(values) * (2 if len(values) == 1 else 1)
