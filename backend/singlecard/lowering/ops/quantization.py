"""Quantize and dequantize."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from singlecard.capture import quantized
from singlecard.capture.quantized import KINDS
from singlecard.lowering.call import Call
from singlecard.lowering.conditions import arg, dtype, rank, type_name, when
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

#: Elements of a row that may share a scale in INT4, so that a product reads the codes themselves.
BLOCKS = (128, 64, 32)


@lowers(quantized.fake_quantize)
@accepts(
    dtype("input").floating,
    rank("input").between(1, 8),
    arg("scale").constant,
    rank("scale").between(0, 0),
    arg("kind").one_of("int8", "fp8"),
)
def fake_quantize(net: Net, input: Tensor, scale: Tensor, kind: str) -> Tensor:
    """Round a value to INT8 or FP8, by a scale for the whole tensor."""
    codes = net.quantize(input, scale, KINDS[kind].dtype)
    return net.dequantize(codes, scale, input.dtype)


def _has_kind(call: Call) -> bool:
    return bool(call.values["codes"].dtype is KINDS[call.values["kind"]].storage)


def _met_type(call: Call) -> str:
    return type_name(call.values["codes"].dtype)


def _comes_in_pairs(call: Call) -> bool:
    return bool(call.values["kind"] != "int4" or call.values["codes"].numel() % 2 == 0)


@lowers(quantized.dequantize)
@accepts(
    arg("codes").constant,
    arg("scale").constant,
    arg("kind").one_of(*KINDS),
    dtype("scale").floating,
    when("codes have the type of their kind", _has_kind, _met_type),
    when(
        "INT4 codes are even in number",
        _comes_in_pairs,
        lambda call: call.values["codes"].numel(),
    ),
)
def dequantize(net: Net, codes: Tensor, scale: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """A constant's codes times their scales: by tensor, by channel, by block of the last axis."""
    value = net.value_of(scale)
    assert value is not None
    if kind == "int4":
        value = _block_scales(value, codes.shape)
    # tensorrt_rtx 1.7.1 builds INT4 with scales of the result's type only. A row of such scales
    # also lets an INT8 product write that type instead of FP32.
    if kind == "int4" or (value.ndim and _holds(dtype, value)):
        value = value.clamp(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps).to(dtype)
    return net.dequantize(codes, net.constant(value), dtype)


def _holds(dtype: torch.dtype, scale: torch.Tensor) -> bool:
    limits = torch.finfo(dtype)
    return bool((scale >= limits.smallest_normal).all() and (scale <= limits.max).all())


def _block_scales(scale: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Repeat the scale of a tensor or row for each block.

    With blocks of the last axis, INT4 weights are read by the product itself; with fewer scales
    tensorrt_rtx 1.7.1 writes the whole weight to memory first, as floating point.
    """
    # A single block to a row would be taken for a scale by channel.
    block = next((size for size in BLOCKS if shape[-1] % size == 0 and shape[-1] > size), None)
    if len(shape) != 2 or block is None or (scale.ndim and scale.shape[-1] != 1):
        return scale
    return scale.expand(shape[0], shape[1] // block)
