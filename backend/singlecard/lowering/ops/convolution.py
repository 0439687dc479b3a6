"""Convolution in one, two and three dimensions, and its transpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, dtype, rank, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.lowering.ops.padding import padded
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


def _kernel_is_known(call: Call) -> bool:
    return all(isinstance(size, int) for size in call.values["weight"].shape)


@lowers(aten.convolution.default)
@accepts(
    dtype("input").floating,
    rank("input").between(3, 5),
    arg("output_padding").known,
    arg("padding").known,
    when(
        "the shape of the kernel is known",
        _kernel_is_known,
        lambda call: list(call.values["weight"].shape),
    ),
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
    """Cross-correlation, or its transpose."""
    count = input.ndim - 2
    window = [_repeated(v, count) for v in (stride, padding, dilation, output_padding)]
    if count == 1:  # TensorRT convolves two axes or three
        input, weight = net.unsqueeze(input, 2), net.unsqueeze(weight, 2)
        window = [[plain, *given] for plain, given in zip((1, 0, 1, 0), window, strict=True)]
    strides, pads, dilations, extra = window
    if transposed:
        result = _transposed(net, input, weight, bias, strides, pads, dilations, extra, groups)
    else:
        result = net.convolution(
            input, weight, bias, stride=strides, padding=pads, dilation=dilations, groups=groups
        )
    return net.squeeze(result, [2]) if count == 1 else result


def _repeated(values: Sequence[int], count: int) -> list[int]:
    return list(values) * (count if len(values) == 1 else 1)


def _transposed(
    net: Net,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    kind = x.dtype
    if kind == torch.bfloat16:  # TensorRT-RTX 1.7.1 builds no deconvolution in BF16
        x, weight = net.cast(x, torch.float32), net.cast(weight, torch.float32)
        bias = None if bias is None else net.cast(bias, torch.float32)
    if max(stride) > 1 and max(dilation) > 1:  # refused together: "Strided & Dilated Deconv"
        for axis, step in enumerate(dilation):
            weight = _spread(net, weight, axis + 2, step)
        dilation = [1] * len(dilation)
    # Output padding cuts off less at the end. What it adds beyond the padding is out of reach of
    # any input: nothing but bias.
    after = [cut - more for cut, more in zip(padding, output_padding, strict=True)]
    beyond = [max(-cut, 0) for cut in after]
    outside = any(beyond)
    result = net.deconvolution(
        x,
        weight,
        None if outside else bias,
        stride=stride,
        pre_padding=padding,
        post_padding=[max(cut, 0) for cut in after],
        dilation=dilation,
        groups=groups,
    )
    if outside:
        sides = [side for more in reversed(beyond) for side in (0, more)]
        result = padded(net, result, sides, "FILL", 0)
        if bias is not None:
            shape = [1, bias.shape[0], *[1] * (x.ndim - 2)]
            result = net.sum(result, net.reshape(bias, shape))
    return net.cast(result, kind)


def _spread(net: Net, weight: Tensor, axis: int, step: int) -> Tensor:
    """Put ``step - 1`` zeros between the elements of one axis of a kernel."""
    if step == 1 or weight.shape[axis] == 1:
        return weight
    length = weight.shape[axis]
    apart = net.unsqueeze(weight, axis + 1)
    room = [0] * (2 * (apart.ndim - axis - 2)) + [0, step - 1]
    wide = padded(net, apart, room, "FILL", 0)
    shape = [*weight.shape[:axis], length * step, *weight.shape[axis + 1 :]]
    return net.narrow(net.reshape(wide, shape), axis, 0, (length - 1) * step + 1)
