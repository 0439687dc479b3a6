"""Weights of a layer as a typed view of memory that is never copied."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from singlecard.errors import LoweringError
from singlecard.network.flavour import trt

#: Bits of one element of each type that weights can have.
BITS = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "int32": 32,
    "int64": 64,
    "int8": 8,
    "uint8": 8,
    "bool": 8,
    "fp8": 8,
    "e8m0": 8,
    "int4": 4,
    "fp4": 4,
}


@dataclass(frozen=True, slots=True)
class WeightView:
    """Elements of one type in a row, in memory that the network's maker keeps alive.

    Attributes:
        dtype: the type's name, such as ``float16`` or ``int4``.
        count: the number of elements; 4-bit elements lie two to a byte, the first in the low bits.
        address: where the first element lies. For weights that were added as a null pointer with a
            count, TensorRT-RTX 1.7 makes up an address that must not be read and cannot be told
            from a real one.
    """

    dtype: str
    count: int
    address: int

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the end of the last."""
        return (self.count * BITS[self.dtype] + 7) // 8

    @property
    def data(self) -> memoryview:
        """The bytes, read only and not copied."""
        if not self.count:
            return memoryview(b"")
        raw = (ctypes.c_ubyte * self.nbytes).from_address(self.address)
        return memoryview(raw).cast("B").toreadonly()


class _WeightsStruct(ctypes.Structure):
    """``nvinfer1::Weights``: part of TensorRT's stable interface."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


def view_weights(weights: Any, dtype: str) -> WeightView:
    """Return a view of ``weights``, as a layer's property hands them out.

    A layer hands out a NumPy array over a ``Weights`` object, or the object itself where NumPy has
    no such type. The object has no way to ask for its address, so that is read from the C++ object
    which the Python one points to. What stands beside it in that place is compared with what the
    Python object says, so that a TensorRT with another layout raises and is not misread.
    """
    holder = weights if isinstance(weights, trt.Weights) else weights.base
    if holder is None:  # NumPy was given nothing to look at: there are no weights.
        return WeightView(dtype, 0, 0)
    struct_address = ctypes.c_void_p.from_address(id(holder) + object.__basicsize__).value
    struct = _WeightsStruct.from_address(struct_address or 0)
    if struct.type != int(holder.dtype) or struct.count != holder.size:
        raise LoweringError(
            f"TensorRT {trt.__version__} lays out its Weights objects in an unknown way, so "
            f"{dtype} weights cannot be read: use a version named in the documentation"
        )
    return WeightView(dtype, int(holder.size), struct.values or 0)
