"""Example arguments of a model: checked, and named by path."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard.errors import OptionError


def copied(values: Any) -> Any:
    """Copy every tensor in a nest of values, so that in-place changes stay apart."""
    return pytree.tree_map_only(torch.Tensor, _copy, values)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    for name in ("_dynamo_dynamic_indices", "_dynamo_dynamic_range"):
        if hasattr(tensor, name):
            setattr(copy, name, getattr(tensor, name))
    return copy


_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call.

    Attributes:
        model: what is called.
        args, kwargs: its arguments.
        names: parameters that can be given by position, in order.
        others: the other parameters: those by keyword alone.
        rest, keywords: names of ``*args`` and ``**kwargs``, or "".
        none: parameters whose default is None.
        leaves: each value that is no container, by its path.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]
    others: tuple[str, ...]
    rest: str
    keywords: str
    none: tuple[str, ...]
    leaves: dict[str, Any]

    def copied(self) -> Arguments:
        """Return the same call with tensors of its own, which may be marked and written to."""
        args, kwargs = copied((self.args, self.kwargs))
        return arguments_of(self.model, args, kwargs)

    @property
    def order(self) -> list[tuple[str, Any]]:
        """Parameters that are given and their values, as ``torch.export`` puts them in order."""
        count = min(len(self.names), len(self.args))
        order: list[tuple[str, Any]] = list(zip(self.names, self.args[:count], strict=False))
        if self.args[count:]:
            order.append((self.rest, self.args[count:]))
        known = [name for name in (*self.names[count:], *self.others) if name in self.kwargs]
        order += [(name, self.kwargs[name]) for name in known]
        return order + [item for item in self.kwargs.items() if item[0] not in known]

    def shown(self, path: str) -> str:
        """Return a path as a person writes it: with the parameter's name for its place."""
        first, dot, rest = path.partition(".")
        if first not in self.kwargs and first.isdecimal() and int(first) < len(self.names):
            return f"{self.names[int(first)]}{dot}{rest}"
        return path

    def path_of(self, name: str) -> str:
        """Return the path that a name begins: a parameter, a place, a way into a container."""
        first, dot, rest = name.partition(".")
        given = self.names[: len(self.args)]
        if name in self.kwargs or first in self.kwargs or first not in given:
            return name
        return f"{given.index(first)}{dot}{rest}"


def arguments_of(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> Arguments:
    """Check a model's example arguments, and name them.

    Raises:
        OptionError: ``model`` cannot be called, or the arguments are no tuple and no mapping.
    """
    if isinstance(model, type) and issubclass(model, torch.nn.Module):
        raise OptionError(
            f"the model is the class {model.__name__}: make a module of it first, "
            f"{model.__name__}(...).eval()"
        )
    if not callable(model):
        raise OptionError(f"got {type(model).__name__} as the model: give a module, or a function")
    if not isinstance(args, (tuple, list)):
        cure = "write (x,), a tuple, for one argument x"
        if isinstance(args, Mapping):
            cure = "give arguments by name as kwargs, and () as args"
        raise OptionError(f"args is {kind_of(args)}: {cure}")
    if kwargs is not None and not (
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    ):
        raise OptionError(f"kwargs is {kind_of(kwargs)}: it takes a dict from names to values")
    given, named = tuple(args), dict(kwargs or {})
    parameters = _parameters(model)
    kinds = {item.name: item.kind for item in parameters}
    return Arguments(
        model,
        given,
        named,
        tuple(name for name, kind in kinds.items() if kind in _BY_POSITION),
        tuple(name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY),
        next((n for n, kind in kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL), ""),
        next((n for n, kind in kinds.items() if kind is inspect.Parameter.VAR_KEYWORD), ""),
        tuple(item.name for item in parameters if item.default is None),
        dict(_leaves([*enumerate(given), *named.items()])),
    )


def kind_of(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def _parameters(model: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a model's parameters; none where it does not tell."""
    try:
        return list(inspect.signature(getattr(model, "forward", model)).parameters.values())
    except (TypeError, ValueError):
        return []


def parts_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Return what is in a container, with what it is found by; None for what is no container."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    inside, _ = pytree.tree_flatten(value)
    if len(inside) == 1 and inside[0] is value:
        return None
    return list(enumerate(inside))


def _leaves(items: Sequence[tuple[Any, Any]], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in items:
        parts = parts_of(value)
        if parts is None:
            yield f"{path}{key}", value
        else:
            yield from _leaves(parts, f"{path}{key}.")
