"""TensorRT's types as torch tensors hold them, and how a value becomes one of them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from singlecard.network.inspect_weights import WeightView

#: Types that torch lacks are held in a wider one: INT4 as its integers, FP4 and E8M0 as their
#: exact values.
TORCH_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
        "int32": torch.int32,
        "int64": torch.int64,
        "int8": torch.int8,
        "uint8": torch.uint8,
        "bool": torch.bool,
        "fp8": torch.float8_e4m3fn,
        "int4": torch.int8,
        "fp4": torch.float32,
        "e8m0": torch.float32,
    }
)

#: Types in which no arithmetic is done: values are widened to FP32, and rounded afterwards.
NARROW_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float8_e4m3fn})

FP8_MAX = 448.0
#: The magnitudes of FP4 E2M1, by code.
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def widen(value: Tensor) -> Tensor:
    """Return ``value`` in FP32 if it is a narrower float, and itself if not."""
    return value.float() if value.dtype in NARROW_FLOATS else value


def round_to(value: Tensor, dtype: str) -> Tensor:
    """Round ``value`` to the TensorRT type ``dtype``.

    Float to float rounds half to even; FP8 saturates, FP16 and BF16 overflow to infinity. Float to
    integer drops the fraction and saturates, as CUDA's conversion does, with 0 for NaN.
    """
    target = TORCH_DTYPES[dtype]
    if value.dtype == target:
        return value
    if target == torch.float8_e4m3fn:
        return value.float().clamp(-FP8_MAX, FP8_MAX).to(target)
    if value.is_floating_point() and not target.is_floating_point and target != torch.bool:
        limits = torch.iinfo(target)
        # 2**63 - 1 has no double of its own: the next one below is the largest safe value.
        largest = min(float(limits.max), math.nextafter(2.0**63, 0.0))
        return value.double().nan_to_num(0.0).clamp(float(limits.min), largest).to(target)
    return value.to(target)


def round_to_fp4(value: Tensor) -> Tensor:
    """Round to the nearest FP4 E2M1 value, half to even, saturating at 6."""
    magnitudes = value.abs().clamp(max=FP4_VALUES[-1])
    # The step is 0.5 below 2, 1 below 4 and 2 above; torch.round is half to even, and the even
    # multiples of the step are the codes with an even mantissa.
    step = torch.where(magnitudes < 2.0, 0.5, torch.where(magnitudes < 4.0, 1.0, 2.0))
    return torch.round(magnitudes / step) * step * value.sign()


def tensor_from_weights(weights: WeightView, device: torch.device) -> Tensor:
    """Return the elements of ``weights`` in a row, not copied on CPU where torch has the type."""
    if not weights.count:
        return torch.empty(0, dtype=TORCH_DTYPES[weights.dtype], device=device)
    raw = (ctypes.c_ubyte * weights.nbytes).from_address(weights.address)
    if weights.dtype == "int4":
        return (_nibbles(raw, weights.count).to(torch.int8).bitwise_xor_(8) - 8).to(device)
    if weights.dtype == "fp4":
        codes = torch.tensor(FP4_VALUES + tuple(-value for value in FP4_VALUES))
        return codes[_nibbles(raw, weights.count).long()].to(device)
    if weights.dtype == "e8m0":
        exponents = torch.frombuffer(raw, dtype=torch.uint8).to(torch.float32) - 127.0
        return exponents.exp2().masked_fill(exponents == 128.0, math.nan).to(device)
    return torch.frombuffer(raw, dtype=TORCH_DTYPES[weights.dtype]).to(device)


def _nibbles(raw: ctypes.Array[ctypes.c_ubyte], count: int) -> Tensor:
    """The 4-bit fields of the bytes, low half first."""
    packed = torch.frombuffer(raw, dtype=torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten()[:count]
