"""The arguments of a model at other sizes: another batch, and another length or resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.models.listing import Case


def resized(case: Case, step: int, sizes: bool = True) -> Case:
    """Return a model with other arguments: ``step`` more rows, and longer or larger ones.

    Args:
        case: the model and its arguments.
        step: 0: as they are; 1, 2: two further sizes.
        sizes: change lengths and resolutions, not the batch alone.
    """
    module, args, kwargs = case
    if not step:
        return case
    changed = [_resizer(step, sizes)(item) for item in args]
    named = {name: _resizer(step, sizes, name)(item) for name, item in kwargs.items()}
    return module, tuple(changed), named


def can_be_resized(case: Case) -> bool:
    """Tell whether all that varies is in tensors: what a cache holds belongs to its own batch."""
    leaves = pytree.tree_leaves((case[1], case[2]))
    return all(isinstance(item, (Tensor, bool, int, float, str)) for item in leaves)


def _resizer(step: int, sizes: bool, name: str = "") -> Callable[[Any], Any]:
    def change(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if sizes and value.ndim == 4 and value.shape[1] == 3:
            height, width = value.shape[2:]
            value = torch.cat([value] * 2, 2)
            value = torch.cat([value] * step, 3) if step > 1 else value
            assert value.shape[2:] == (2 * height, step * width)
        elif sizes and value.ndim in (2, 3) and not name.startswith("input_points"):
            more = value[..., : max(1, value.shape[-1] // (4 // step))]
            value = torch.cat([more, value], -1)
        return torch.cat([value, *[value[:1]] * step])

    return lambda value: pytree.tree_map(change, value)
