"""Layers of the network facade that quantize and dequantize."""

from __future__ import annotations

import torch

from singlecard.network.sampling import Sampling
from singlecard.network.tensor import Tensor
from singlecard.network.types import trt_from_torch


class Quantizing(Sampling):
    """Explicit quantization: symmetric, by tensor, channel or block."""

    def quantize(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``round_half_even(x / scale)``, saturated, as int8 or float8_e4m3fn."""
        scale, axis = self._scale_of(x, scale)
        add, kind = self.definition.add_quantize, trt_from_torch(dtype)
        layer = self.layer(add, x.handle, scale.handle, kind)
        if axis is not None:
            layer.axis = axis
        return self.output_of(layer)

    def dequantize(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``codes * scale`` in ``dtype``.

        ``scale`` has no dimensions, or as many as ``codes``: each extent is 1, the extent of
        ``codes``, or its number of blocks.
        """
        scale, axis = self._scale_of(codes, scale)
        add, kind = self.definition.add_dequantize, trt_from_torch(dtype)
        layer = self.layer(add, codes.handle, scale.handle, kind)
        if axis is not None:
            layer.axis = axis
        return self.output_of(layer)

    def _scale_of(self, x: Tensor, scale: Tensor) -> tuple[Tensor, int | None]:
        """Return a scale in the form that TensorRT takes, and the axis of the channels it is by."""
        wide = [axis for axis, extent in enumerate(scale.shape) if extent != 1]
        by_channel = len(wide) == 1 and scale.shape[wide[0]] == x.shape[wide[0]]
        if by_channel or not wide:  # TensorRT takes these as a row of numbers, or as one
            scale = self._reshaped(scale, [x.shape[axis] for axis in wide])
        return scale, wide[0] if by_channel else None

    def _reshaped(self, scale: Tensor, shape: list[int]) -> Tensor:
        value = self.value_of(scale)  # must stay a constant, for some forms ask for one
        return self.reshape(scale, shape) if value is None else self.constant(value.reshape(shape))
