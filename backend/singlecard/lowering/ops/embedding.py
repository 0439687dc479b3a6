"""Look-ups in tables."""

from __future__ import annotations

import torch

from singlecard.lowering.conditions import dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor

aten = torch.ops.aten


@lowers(aten.embedding.default)
@accepts(dtype("indices").integral)
def embedding(net: Net, weight: Tensor, indices: Tensor, *_: object) -> Tensor:
    """Rows of a table."""
    return net.gather(weight, indices, 0)
