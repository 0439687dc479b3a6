"""Axes that vary, from the form of `singlecard.verify` to that of ``torch.export``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from singlecard.errors import OptionError


def parameter_names(function: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the parameters that can be given by position, and all those whose default is None."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return (), ()
    by_position = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    names = tuple(item.name for item in parameters if item.kind in by_position)
    return names, tuple(item.name for item in parameters if item.default is None)


def export_shapes(
    shapes: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], names: Sequence[str]
) -> Any:
    """Return what ``torch.export`` takes for the same axes.

    Args:
        shapes: a nest like ``args``, or a mapping from names or places of arguments to nests.
        args, kwargs: the examples.
        names: of the parameters that can be given by position.

    Raises:
        OptionError: it names what is not there, or a range is empty.
    """
    if shapes is None:
        return None
    by_name: dict[str, Any] = {}
    if isinstance(shapes, Mapping):
        places = {name: place for place, name in enumerate(names[: len(args)])}
        for key, nest in shapes.items():
            known = str(key) if key in kwargs else str(places.get(key, key))
            if known not in kwargs and not (known.isdecimal() and int(known) < len(args)):
                given = ", ".join([*names[: len(args)], *kwargs]) or "none"
                raise OptionError(
                    f"dynamic_shapes names {key!r}, which is not among the arguments ({given})"
                )
            by_name[known] = nest
    elif isinstance(shapes, Sequence):
        if len(shapes) > len(args):
            raise OptionError(f"dynamic_shapes has {len(shapes)} entries, args {len(args)}")
        by_name = {str(place): nest for place, nest in enumerate(shapes)}
    else:
        raise OptionError(f"dynamic_shapes does not fit args: got {shapes!r}")
    placed = tuple(
        _nest(by_name.get(str(place)), value, f"args[{place}]") for place, value in enumerate(args)
    )
    named = {name: _nest(by_name.get(name), value, name) for name, value in kwargs.items()}
    return placed, named


def _nest(shapes: Any, value: Any, path: str) -> Any:
    """Return the axes of one argument, in a nest like its value; None where none vary."""
    if shapes is None:
        return None
    if isinstance(value, torch.Tensor):
        axes = dict(enumerate(shapes)) if isinstance(shapes, (list, tuple)) else dict(shapes)
        for axis in axes:
            if not isinstance(axis, int) or not 0 <= axis < value.ndim:
                raise OptionError(f"dynamic_shapes: {path} has {value.ndim} axes, none is {axis!r}")
        return {
            axis: _dim(span, f"{path}, axis {axis}")
            for axis, span in axes.items()
            if not (isinstance(shapes, (list, tuple)) and span is None)
        }
    if isinstance(value, int):
        return _dim(shapes, path)
    if isinstance(value, Mapping) and isinstance(shapes, Mapping):
        unknown = [key for key in shapes if key not in value]
        if unknown:
            raise OptionError(f"dynamic_shapes names {unknown[0]!r}, which is not among {path}")
        return {
            key: _nest(shapes.get(key), item, f"{path}[{key!r}]") for key, item in value.items()
        }
    if isinstance(value, (list, tuple)) and isinstance(shapes, (list, tuple)):
        if len(shapes) > len(value):
            raise OptionError(f"dynamic_shapes has {len(shapes)} entries, {path} {len(value)}")
        rest = [None] * (len(value) - len(shapes))
        return type(value)(
            _nest(nest, item, f"{path}[{place}]")
            for place, (nest, item) in enumerate(zip([*shapes, *rest], value, strict=True))
        )
    raise OptionError(f"dynamic_shapes does not fit {path}: got {shapes!r}")


def _dim(span: Any, where: str) -> Any:
    """Return one axis; of a range, ``torch.export`` finds out itself which sizes are equal."""
    if span is None:
        return Dim.DYNAMIC
    if not isinstance(span, (tuple, list)):
        return span  # torch.export's own
    if len(span) != 2 or not all(end is None or isinstance(end, int) for end in span):
        raise OptionError(f"dynamic_shapes: {where} has {span!r}, it takes (min, max)")
    low, high = span
    if low is not None and high is not None and low > high:
        raise OptionError(f"dynamic_shapes: {where} has min {low} > max {high}")
    return Dim.DYNAMIC(min=low, max=high)


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
