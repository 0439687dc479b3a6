"""Decompositions of our own, where PyTorch's leave in the graph what no engine can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

aten = torch.ops.aten


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Any:
    """Leave out empty tensors, such as a key-value cache that has seen no token yet."""
    filled = [x for x in tensors if not _is_empty(x)]
    if not filled or len(filled) == len(tensors):
        return NotImplemented
    kind = reduce(torch.promote_types, (x.dtype for x in tensors))
    alike = [x.to(kind) for x in filled]
    return aten.cat.default(alike, dim) if len(alike) > 1 else alike[0].clone()


def _is_empty(x: torch.Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {aten.cat.default: _cat}
