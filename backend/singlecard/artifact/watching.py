"""What a model does to the objects that it is called with, beside writing to their tensors.

``torch.export`` follows tensors. It sees no number that changes in a cache, and no tensor that
takes another's place there: what runs later does neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree


@contextmanager
def watched_arguments(module: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """Give a list that names the arguments that a call changes while it is traced.

    Args:
        module: what is traced.
        names: of its parameters that can be given by position.
    """
    changed: list[str] = []
    before: list[dict[str, Any]] = []

    def look(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        before.append(_seen(names, args, kwargs))

    def compare(
        module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        seen, now = before.pop(), _seen(names, args, kwargs)
        changed.extend(name for name in now if now[name] != seen.get(name) and name not in changed)

    handles = (
        module.register_forward_pre_hook(look, with_kwargs=True),
        module.register_forward_hook(compare, with_kwargs=True),
    )
    try:
        yield changed
    finally:
        for handle in handles:
            handle.remove()


def _seen(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each argument holds: numbers as they are, tensors by identity."""
    given = {
        names[place] if place < len(names) else str(place): value
        for place, value in enumerate(args)
    }
    return {name: _held(value) for name, value in (given | dict(kwargs)).items()}


def _held(value: Any) -> Any:
    leaves, spec = pytree.tree_flatten(value)
    return spec, [id(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
