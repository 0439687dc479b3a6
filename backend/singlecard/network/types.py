"""Element types: how PyTorch's and TensorRT's names for them meet."""

from __future__ import annotations

import functools

import torch

from singlecard.network.flavour import trt

#: Four bits an element; PyTorch has the name, and nothing that computes with it.
INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]

_NAMES: dict[torch.dtype, str] = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    INT4: "INT4",
    torch.int8: "INT8",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.uint8: "UINT8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "FP8",
}

#: Types that a TensorRT network can compute with. uint8 exists only as an input or output type.
COMPUTABLE = frozenset(_NAMES) - {
    torch.uint8,
    INT4,
    torch.int8,
    torch.float8_e4m3fn,
}


#: Types that TensorRT converts from and to, and does little else with, each with its lowest number.
#: Inside networks of ours they are int32 (TensorRT-RTX 1.7.1.116: "Tensor ... has datatype UInt8
#: but is not network-level IO", and "shuffle: first input has type UInt8 but must have type Float,
#: ...").
BYTES: dict[torch.dtype, int] = {torch.uint8: 0, torch.int8: -128}


@functools.cache
def trt_from_torch(dtype: torch.dtype) -> trt.DataType:
    """Return TensorRT's ``DataType`` for a PyTorch type. Raises ``KeyError`` where it has none."""
    kind: trt.DataType = getattr(trt.DataType, _NAMES[dtype])
    return kind


@functools.cache
def _torch_from_trt_name(name: str) -> torch.dtype:
    return next(dtype for dtype, known in _NAMES.items() if known == name)


def torch_from_trt(dtype: trt.DataType) -> torch.dtype:
    """Return the PyTorch type of a TensorRT ``DataType``."""
    return _torch_from_trt_name(dtype.name)
