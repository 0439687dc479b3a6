"""Example arguments brought to another batch and length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard.errors import OptionError
from singlecard.report.arguments import copied
from singlecard.report.kv_cache import cache_length, caches_in, with_new_caches


@dataclass(frozen=True)
class Sizes:
    """The sizes that example arguments have.

    Attributes:
        batch: extent of axis 0 of the first tensor; None where there is none.
        length: number of places of the first cache, or else extent of axis 1 of the first tensor
            of whole numbers with two axes; None where there is neither.
        cached: whether ``length`` is a cache's.
    """

    batch: int | None
    length: int | None
    cached: bool = False


def sizes_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sizes:
    tensors = _tensors(args, kwargs)
    batch = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
    for cache in caches_in((tuple(args), dict(kwargs))):
        return Sizes(batch, cache_length(cache), True)
    return Sizes(batch, next((t.shape[1] for t in tensors if _is_tokens(t)), None))


def sized(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    wanted: Sizes,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return copies of arguments with another batch and length.

    Axis 0 of every tensor that is as long there as the batch takes the new batch; axis 1 of every
    tensor of whole numbers or truth values with two axes that is as long there as the length takes
    the new length. They grow by repeating what they hold. Caches are made anew.

    Raises:
        OptionError: there is nothing that a size could apply to.
    """
    given = sizes_of(args, kwargs)
    for what, now, new in (
        ("batch", given.batch, wanted.batch),
        ("length", given.length, wanted.length),
    ):
        if new is not None and now is None:
            raise OptionError(
                f"no example argument has a {what}, and {what} {new} was asked for: a batch is "
                "axis 0 of a tensor, a length axis 1 of a tensor of tokens or the places of a cache"
            )
        if new is not None and now == 0:
            raise OptionError(
                f"the examples have {what} 0: give an example with elements, which can be repeated"
            )

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        result = tensor
        if tensor.ndim and tensor.shape[0] == given.batch:
            result = _repeated(result, 0, wanted.batch)
        if tensor.ndim == 2 and not _is_real(tensor) and tensor.shape[1] == given.length:
            result = _repeated(result, 1, wanted.length)
        return result

    new_args, new_kwargs = pytree.tree_map_only(
        torch.Tensor, resize, copied((tuple(args), dict(kwargs)))
    )
    return with_new_caches(module, new_args, new_kwargs, wanted.length)


def _tensors(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _is_tokens(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 2 and not _is_real(tensor) and tensor.dtype != torch.bool


def _repeated(tensor: torch.Tensor, axis: int, size: int | None) -> torch.Tensor:
    if size is None or size == tensor.shape[axis]:
        return tensor
    index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
    return tensor.index_select(axis, index)
