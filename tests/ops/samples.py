"""A few samples of an op that differ from each other as much as the database allows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

#: Samples that are looked at, and taken, for one op and type.
LOOKED_AT, TAKEN = 80, 6

Sample = tuple[tuple[Any, ...], dict[str, Any]]


def tensors_of(sample: Sample) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(sample) if isinstance(leaf, torch.Tensor)]


def is_empty(sample: Sample) -> bool:
    """Tell whether a sample has a tensor without elements."""
    return any(not tensor.numel() for tensor in tensors_of(sample))


def _form(sample: Sample) -> tuple[Any, ...]:
    """What tells samples apart: ranks, types, and the arguments that are no tensors."""
    leaves, spec = pytree.tree_flatten(sample)
    described = [
        (leaf.ndim, leaf.dtype, leaf.is_contiguous()) if isinstance(leaf, torch.Tensor) else leaf
        for leaf in leaves
    ]
    return (str(spec), repr(described))


def samples_of(op: Any, dtype: torch.dtype) -> list[Sample]:
    """Return up to ``TAKEN`` samples of an op: one of each form first, spread over the list.

    One sample with empty tensors comes on top, where the database has any.
    """
    torch.manual_seed(0)
    generator = op.sample_inputs("cpu", dtype, requires_grad=False)
    found: list[Sample] = []
    for sample in itertools.islice(generator, LOOKED_AT):
        found.append(((sample.input, *sample.args), dict(sample.kwargs)))
    empty = [sample for sample in found if is_empty(sample)][:1]
    found = [sample for sample in found if not is_empty(sample)]
    forms: dict[tuple[Any, ...], Sample] = {}
    for sample in found:
        forms.setdefault(_form(sample), sample)
    distinct = list(forms.values())
    if len(distinct) < TAKEN:
        chosen = {id(sample) for sample in distinct}
        rest = [sample for sample in found if id(sample) not in chosen]
        return distinct + _spread(rest, TAKEN - len(distinct)) + empty
    return _spread(distinct, TAKEN) + empty


def _spread(items: Sequence[Sample], count: int) -> list[Sample]:
    if len(items) <= count:
        return list(items)
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(place * step)] for place in range(count)]
