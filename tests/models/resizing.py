"""The arguments of a model at other sizes: another batch, and another length or resolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.models.decoders import writing
from tests.models.encoder_decoders import answering
from tests.models.listing import Case
from tests.models.making import words
from tests.models.state_spaces import going_on


def resized(case: Case, step: int, sizes: bool = True) -> Case:
    """Return a model with other arguments: ``step`` more rows, and longer or larger ones.

    A cache belongs to its batch and its length: the model fills another one.

    Args:
        case: the model and its arguments.
        step: 0: as they are; 1, 2: two further sizes.
        sizes: change lengths and resolutions, not the batch alone.
    """
    module, args, kwargs = case
    if not step:
        return case
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(step)
        if "cache_params" in kwargs:
            return module, args, going_on(module, 2 + step)
        if "encoder_outputs" in kwargs:
            return module, args, _answering_more(module, kwargs, step, sizes)
        if "past_key_values" in kwargs:
            return module, args, _writing_more(module, kwargs, step, sizes)
    changed = [_resizer(step, sizes)(item) for item in args]
    named = {name: _resizer(step, sizes, name)(item) for name, item in kwargs.items()}
    return module, tuple(changed), named


def _writing_more(
    module: nn.Module, kwargs: dict[str, Any], step: int, sizes: bool
) -> dict[str, Any]:
    longer = step if sizes else 0
    before, more = 6 + longer, 1 + 2 * longer
    given = writing(module, 2 + step, before, more, 16 + 8 * longer)
    if "attention_mask" in kwargs:
        given["attention_mask"] = torch.ones(2 + step, before + more, dtype=torch.long)
    return given


def _answering_more(
    module: nn.Module, kwargs: dict[str, Any], step: int, sizes: bool
) -> dict[str, Any]:
    longer = step if sizes else 0
    read = kwargs["encoder_outputs"].last_hidden_state
    read = torch.cat([read, *[read[:1]] * step])
    read = torch.cat([read, read[:, : 4 * longer]], 1)
    rows, places = read.shape[:2]
    mask = {}
    if "attention_mask" in kwargs:
        mask["attention_mask"] = torch.ones(rows, places, dtype=torch.long)
    begun, fresh = words(6 + longer, rows), words(1 + longer, rows)
    return answering(module, read, begun, fresh, 16 + 8 * longer, **mask)


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
