"""Quantize and dequantize: INT8, INT4, FP8 and FP4, by tensor, by channel and by block."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.table import Call, evaluates
from singlecard.reference.types import FP4_VALUES, round_to, round_to_fp4

_INTEGER_LIMITS = {"int8": (-128, 127), "int4": (-8, 7)}


@evaluates("QUANTIZE")
def quantize(call: Call) -> Tensor:
    """``clamp(round_half_even(x / scale) + zero_point)``."""
    x, dtype, zero_point = call[0], call.output.dtype, call.optional(2)
    scaled = x / _broadcast(call, call[1], x)
    if zero_point is not None:
        whole = torch.round(scaled) if dtype in _INTEGER_LIMITS else scaled
        scaled = whole + _broadcast(call, zero_point, x)
    return round_quantized(scaled, dtype)


@evaluates("DEQUANTIZE")
def dequantize(call: Call) -> Tensor:
    """``(x - zero_point) * scale``."""
    x, zero_point = call[0].float(), call.optional(2)
    if zero_point is not None:
        x = x - _broadcast(call, zero_point, x)
    return x * _broadcast(call, call[1], x)


def round_quantized(scaled: Tensor, dtype: str) -> Tensor:
    """Round elements that are counted in quantization steps to ``dtype``, saturating."""
    if dtype in _INTEGER_LIMITS:
        low, high = _INTEGER_LIMITS[dtype]
        return torch.round(scaled).clamp(low, high).to(torch.int8)
    return round_to_fp4(scaled) if dtype == "fp4" else round_to(scaled, dtype)


def _broadcast(call: Call, scale: Tensor, x: Tensor) -> Tensor:
    """Bring the scale to a shape that multiplies with ``x``."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1:
        axis = call.integer("axis") % x.dim()
        return scale.reshape([-1 if i == axis else 1 for i in range(x.dim())])
    for axis, (length, count) in enumerate(zip(x.shape, scale.shape, strict=True)):
        if count not in (1, length):
            scale = scale.repeat_interleave(-(-length // count), dim=axis).narrow(axis, 0, length)
    return scale


@evaluates("DYNAMIC_QUANTIZE")
def dynamic_quantize(call: Call) -> tuple[Tensor, ...]:
    """NVFP4: quantize with a scale for each block that is computed from its largest element.

    The scales themselves are quantized to FP8, by the scale that is the second input.
    """
    types = tuple(output.dtype for output in call.layer.outputs)
    if types != ("fp4", "fp8"):
        raise EvaluationError(
            f"how scales are rounded is only defined for FP4 with FP8 scales, not for {types[0]} "
            f"with {types[1]}: use a quantize layer with a fixed scale"
        )
    x, scale_of_scales = call[0], call[1]
    blocks = _block_shape(call, x)
    # Each dimension becomes two: which block, and where in the block.
    split = [size for n, block in zip(x.shape, blocks, strict=True) for size in (n // block, block)]
    largest = x.abs().reshape(split).amax(tuple(range(1, 2 * x.dim(), 2)))
    scale = round_to(largest / FP4_VALUES[-1] / scale_of_scales, "fp8")
    divisor = scale.float() * scale_of_scales
    for axis, block in enumerate(blocks):
        divisor = divisor.repeat_interleave(block, dim=axis)
    return round_to_fp4(torch.where(divisor > 0, x / divisor, 0.0)), scale


def _block_shape(call: Call, x: Tensor) -> tuple[int, ...]:
    """The size of a block in every dimension; -1 stands for the whole dimension."""
    shape = call.dims("block_shape") if "block_shape" in call.layer.attributes else None
    if shape:
        return tuple(n if block == -1 else block for n, block in zip(x.shape, shape, strict=True))
    axis = call.integer("axis") % x.dim()
    return tuple(call.integer("block_size") if i == axis else 1 for i in range(x.dim()))
