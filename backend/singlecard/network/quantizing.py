"""Layers of the network facade that quantize and dequantize."""

from __future__ import annotations

from typing import Any

import torch

from singlecard.network.sampling import Sampling
from singlecard.network.tensor import Tensor
from singlecard.network.types import trt_from_torch


class Quantizing(Sampling):
    """Explicit quantization: symmetric, by tensor, channel or block."""

    def quantize(self, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``round_half_even(x / scale)``, saturated, as int8 or float8_e4m3fn."""
        return self._scaled("quantize", x, scale, dtype)

    def dequantize(self, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``codes * scale`` in ``dtype``.

        ``scale`` has no dimensions, or as many as ``codes``: each extent is 1, the extent of
        ``codes``, or its number of blocks.
        """
        return self._scaled("dequantize", codes, scale, dtype)

    def _scaled(self, kind: str, x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        wide = [axis for axis, extent in enumerate(scale.shape) if extent != 1]
        by_channel = len(wide) == 1 and scale.shape[wide[0]] == x.shape[wide[0]]
        if by_channel or not wide:  # TensorRT takes these as a row of numbers, or as one
            scale = self._reshaped(scale, [x.shape[axis] for axis in wide])
        layer: Any = self.add(kind, x.handle, scale.handle, trt_from_torch(dtype))
        if by_channel:
            layer.axis = wide[0]
        return self.output_of(layer)

    def _reshaped(self, scale: Tensor, shape: list[int]) -> Tensor:
        value = self.value_of(scale)  # must stay a constant, for some forms ask for one
        return self.reshape(scale, shape) if value is None else self.constant(value.reshape(shape))
