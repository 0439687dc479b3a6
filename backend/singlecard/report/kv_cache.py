"""Caches of keys and values among a model's arguments, and what one would take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard.errors import OptionError
from singlecard.report.arguments import copied


def is_cache(value: Any) -> bool:
    """Tell whether a value is a cache of ``transformers`` whose length is fixed."""
    layers = getattr(value, "layers", None)
    return (
        isinstance(layers, list)
        and bool(layers)
        and all(isinstance(getattr(layer, "max_cache_len", None), int) for layer in layers)
    )


def caches_in(values: Any) -> Iterator[Any]:
    return (leaf for leaf in pytree.tree_leaves(values) if is_cache(leaf))


def cache_length(cache: Any) -> int:
    """Return the number of places of the longest layer: others have a sliding window."""
    return max(int(layer.max_cache_len) for layer in cache.layers)


def with_new_caches(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    length: int | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with empty caches of their own, which fit the batch of the arguments.

    A cache takes its memory when keys first arrive: the model is run once in PyTorch for that, so
    that a capture finds the cache among its inputs, as it does in every step but the first.

    Raises:
        OptionError: a cache is of a kind that cannot be made anew.
    """
    if not any(caches_in((args, kwargs))):
        return tuple(args), dict(kwargs)

    def renewed(value: Any) -> Any:
        return _renewed(module, value, length) if is_cache(value) else value

    new_args, new_kwargs = pytree.tree_map(renewed, (tuple(args), dict(kwargs)))
    with torch.no_grad():
        module(*copied(new_args), **copied(new_kwargs))
    for cache in caches_in((new_args, new_kwargs)):
        cache.reset()
    return new_args, new_kwargs


def _renewed(module: Callable[..., Any], cache: Any, length: int | None) -> Any:
    config = getattr(module, "config", None)
    places = cache_length(cache) if length is None else length
    try:
        return type(cache)(config=config, max_cache_len=places)
    except Exception as error:
        raise OptionError(
            f"a cache of another size cannot be made from {type(cache).__name__} ({error}): give "
            "a StaticCache of transformers, and a module with the config that it was made from"
        ) from error


def config_cache_bytes(module: Callable[..., Any], batch: int, length: int) -> int | None:
    """Return what a static cache of a decoder of ``transformers`` takes, in the module's type.

    None where the module generates no text, or keeps another kind of state.
    """
    cache_utils = sys.modules.get("transformers.cache_utils")
    config = getattr(module, "config", None)
    if cache_utils is None or config is None or not isinstance(module, torch.nn.Module):
        return None
    generates = getattr(module, "can_generate", None)
    if not callable(generates) or not generates() or getattr(config, "is_encoder_decoder", False):
        return None
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", None)
    groups = getattr(text, "num_key_value_heads", None) or heads
    width = getattr(text, "head_dim", None)
    if not isinstance(heads, int) or not isinstance(groups, int):
        return None
    width = width or text.hidden_size // heads
    kind = next((item.dtype for item in module.parameters() if item.is_floating_point()), None)
    try:
        cache = cache_utils.StaticCache(config=config, max_cache_len=length)
        cache.early_initialization(batch, groups, width, kind, torch.device("meta"))
        tensors = [item for layer in cache.layers for item in (layer.keys, layer.values)]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)
