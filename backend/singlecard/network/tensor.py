"""The value that converters pass around: one tensor of a network under construction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from singlecard.network.flavour import trt


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A tensor of the network: its TensorRT handle, its shape (-1 where dynamic) and its type."""

    handle: trt.ITensor
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        return -1 not in self.shape


#: One extent of a shape: known now, or a one-element int64 tensor computed when the engine runs.
Size = int | Tensor
