"""Quantize and dequantize: INT8, INT4, FP8 and FP4, by tensor, by channel and by block."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.table import Call, evaluates
from singlecard.reference.types import FP4_VALUES, FP8_MAX, round_to, round_to_fp4

_INTEGER_LIMITS = {"int8": (-128, 127), "int4": (-8, 7)}


@evaluates("QUANTIZE")
def quantize(call: Call) -> Tensor:
    """``clamp(round_half_even(x / scale) + zero_point)``."""
    x, dtype = call[0], call.output.dtype
    scaled = x / _broadcast(call, call[1], x)
    return round_quantized(scaled, dtype)


@evaluates("DEQUANTIZE")
def dequantize(call: Call) -> Tensor:
    x = call[0].float()
    return x * _broadcast(call, call[1].float(), x)


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
    """Quantize with a scale for each block that is computed from the block's largest element."""
    x, dtype = call[0], call.output.dtype
    largest, blocks = _block_maxima(call, x)
    match call.layer.outputs[1].dtype:
        case "fp8":  # NVFP4: the scales themselves are quantized, by the second input
            per_scale = call[1].float()
            scale = (largest / FP4_VALUES[-1] / per_scale).clamp(max=FP8_MAX)
            scale = scale.to(torch.float8_e4m3fn).float()
            divisor = scale * per_scale
        case "e8m0":  # MXFP8: scales are powers of two, rounded up so that nothing saturates
            exponent = torch.ceil(torch.log2(largest / FP8_MAX)).clamp(-127, 127)
            scale = divisor = torch.where(largest > 0, torch.exp2(exponent), 2.0**-127)
        case scale_dtype:
            raise EvaluationError(f"scales of type {scale_dtype} have no defined meaning")
    for axis, size in blocks:
        divisor = divisor.repeat_interleave(size, dim=axis)
    quotient = torch.where(divisor > 0, x / divisor, 0.0)
    return (round_to_fp4(quotient) if dtype == "fp4" else quotient), scale


def _block_maxima(call: Call, x: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """The largest magnitude of each block, and the blocked dimensions with the block's length."""
    shape = call.layer.attributes.get("block_shape")
    if isinstance(shape, tuple) and len(shape) == x.dim():
        blocks = [(a, int(n) if n > 0 else x.shape[a]) for a, n in enumerate(shape) if n != 1]
    else:
        blocks = [(call.integer("axis") % x.dim(), call.integer("block_size"))]
    largest = x.abs()
    for axis, size in blocks:
        largest = largest.unflatten(axis, (-1, size)).amax(axis + 1)
    return largest, blocks
