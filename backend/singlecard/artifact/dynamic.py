"""The smallest sizes that an artifact takes, which PyTorch's own program does not say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


def wanted_lows(shapes: Any, args: Any, kwargs: Any) -> dict[tuple[int, int], int]:
    """Return the smallest size asked for, by the place of a leaf and its axis.

    PyTorch traces a size that varies as 2 or more. What it traces is right for 1 as well, as
    ``torch.export`` has it, so that a batch of one needs no artifact of its own.
    """
    if shapes is None:
        return {}
    placed, named = shapes
    nests = [*_nests(placed, args), *_nests(named, kwargs)]
    lows: dict[tuple[int, int], int] = {}
    for place, nest in enumerate(nests):
        for axis, dim in (nest or {}).items():
            low = getattr(dim, "min", None)
            lows[place, axis] = 1 if low is None else max(1, int(low))
    return lows


def _nests(shapes: Any, value: Any) -> Iterator[Any]:
    """Yield what stands for each tensor among the leaves of a value; None for other leaves."""
    if shapes is None:
        yield from (None for _ in pytree.tree_leaves(value))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nests(shapes.get(key), item)
    elif isinstance(value, (list, tuple)):
        for nest, item in zip(shapes, value, strict=True):
            yield from _nests(nest, item)
    else:
        yield shapes if isinstance(value, torch.Tensor) else None
