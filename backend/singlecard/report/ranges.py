"""Which axes of a model's arguments vary, and what PyTorch and the builder are told of it.

Every door that takes a model and its arguments (`singlecard.verify`, ``explain``, ``plan_memory``,
``export``, the commands) reads ``dynamic_shapes`` here, in each of PyTorch's forms and in ours, so
that the same ranges lead to the same engine wherever they are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim

from singlecard.axes import FORMS, NUMBER, Axes, Range, axes_from_text, nearest, range_from
from singlecard.checking import shown
from singlecard.errors import OptionError
from singlecard.lowering.ranges import UNBOUNDED
from singlecard.options import Span
from singlecard.report.arguments import Arguments, kind_of, parts_of


def read_axes(shapes: Any, call: Arguments, what: str = "dynamic_shapes") -> Axes:
    """Return which axes of arguments vary, in whatever form it was given.

    Args:
        shapes: None; a mapping from parameters, places or paths to what each takes; a sequence in
            the order of arguments; a text such as ``"x=1:8:32; y=1:8:32"``; or what
            ``torch.export`` has for it (``ShapesCollection``, ``AdditionalInputs``). A container
            takes a nest like itself. A tensor takes ``{axis: range}``, a sequence with one entry
            for each axis, or a text such as ``"1:8:32,128"``; `range_from` lists ranges.
        call: the example arguments.
        what: the option's name, for messages.

    Returns:
        The ranges in the order of arguments and axes, whatever the order in which they were given.

    Raises:
        OptionError: it names what is not there or not valid, and the nearest thing that is.
    """
    if shapes is None:
        return {}
    if isinstance(shapes, str):
        shapes = axes_from_text([shapes])
    elif callable(getattr(shapes, "dynamic_shapes", None)):
        try:
            shapes = shapes.dynamic_shapes(call.model, call.args, call.kwargs)
        except Exception as error:
            raise OptionError(f"{what}: {type(error).__name__}: {error}") from error
    reader = _Reader(what, call)
    if isinstance(shapes, Mapping):
        for key, nest in shapes.items():
            reader.named(key, nest)
    elif isinstance(shapes, (tuple, list)):
        reader.in_order(shapes)
    else:
        raise OptionError(
            f"{what} does not fit args: got {shown(shapes)}. Write a dict from parameters to "
            f"{{axis: range}}; {FORMS}"
        )
    reader.check_shared()
    return {
        path: dict(sorted(reader.found[path].items()))
        for path in call.leaves
        if reader.found.get(path)
    }


class _Reader:
    """Walks a nest of ranges along the arguments that they are for."""

    def __init__(self, what: str, call: Arguments) -> None:
        self.what, self.call = what, call
        self.found: dict[str, dict[int, Range]] = {}
        self.paths: set[str] = set()

    def named(self, key: Any, nest: Any) -> None:
        """Read what is given for a parameter, a place or a path."""
        call = self.call
        by_place = len(call.names)
        name = str(key) if isinstance(key, int) and not isinstance(key, bool) else key
        if not isinstance(name, str):
            raise self._unknown(key)
        path = call.path_of(name)
        first, *rest = path.split(".")
        if path in call.kwargs:
            self.nest(nest, call.kwargs[path], path)
        elif first in call.kwargs:
            self._within(name, call.kwargs[first], first, rest, nest)
        elif first.isdecimal() and int(first) < len(call.args):
            self._within(name, call.args[int(first)], str(int(first)), rest, nest)
        elif name and name == call.rest and len(call.args) > by_place:
            for place, item in self._pairs(nest, call.args[by_place:], name):
                self.nest(item, call.args[by_place + place], str(by_place + place))
        elif name and name == call.keywords and isinstance(nest, Mapping):
            for inner, item in nest.items():
                self.named(inner, item)
        elif nest is not None:  # torch.export has None for a parameter that is not given, too
            raise self._unknown(key)
        elif name not in (*call.names, *call.others, call.rest, call.keywords):
            raise self._unknown(key)

    def in_order(self, nests: Sequence[Any]) -> None:
        """Read what is given for arguments in their order."""
        call = self.call
        order = call.order
        values: list[tuple[str, Any]] = [*((str(i), v) for i, v in enumerate(call.args))]
        values += [(name, value) for name, value in order if name in call.kwargs]
        rest = next((place for place, (name, _) in enumerate(order) if name == call.rest), None)
        if call.rest and rest is not None and len(nests) == len(order) and _is_nest(nests[rest]):
            for (name, _), nest in zip(order, nests, strict=True):
                self.named(name, nest)
            return
        if len(nests) > len(values):
            count = f"{len(call.args)}" + (f" and kwargs {len(call.kwargs)}" * bool(call.kwargs))
            raise OptionError(f"{self.what} has {_entries(nests)}, args {count}")
        for (path, value), nest in zip(values, nests, strict=False):
            self.nest(nest, value, path)

    def _within(self, name: str, value: Any, path: str, rest: Sequence[str], nest: Any) -> None:
        for piece in rest:
            parts = {str(key): item for key, item in parts_of(value) or ()}
            if piece not in parts:
                raise self._unknown(name)
            value, path = parts[piece], f"{path}.{piece}"
        self.nest(nest, value, path)

    def nest(self, nest: Any, value: Any, path: str) -> None:
        """Read what is given for one value."""
        name = self.call.shown(path)
        if nest is None:
            return
        if isinstance(value, torch.Tensor):
            self._once(path)
            self._tensor(nest, value, path)
        elif isinstance(value, int) and not isinstance(value, bool):
            self._once(path)
            if isinstance(nest, Mapping) and set(nest) == {NUMBER}:
                nest = nest[NUMBER]  # as this reader returns it
            self._add(path, NUMBER, nest, value, f"{self.what}, {name}")
        elif parts_of(value) is None:
            raise OptionError(
                f"{self.what} does not fit {name}: it is {kind_of(value)}, and only axes of "
                "tensors and integers vary. Leave it out, or give None for it"
            )
        else:
            for key, item in self._pairs(nest, value, name):
                self.nest(item, dict(parts_of(value) or ())[key], f"{path}.{key}")

    def _once(self, path: str) -> None:
        if path in self.paths:
            raise OptionError(
                f"{self.what} gives {self.call.shown(path)!r} twice: keep one of both"
            )
        self.paths.add(path)

    def _pairs(self, nest: Any, value: Any, name: str) -> Iterator[tuple[Any, Any]]:
        """Give each part of a nest with the key of the value that it is for."""
        keys = [key for key, _ in parts_of(value) or ()]
        if isinstance(nest, (list, tuple)):
            if len(nest) > len(keys):
                raise OptionError(f"{self.what} has {_entries(nest)}, {name} {len(keys)}")
            yield from zip(keys, nest, strict=False)
        elif dataclasses.is_dataclass(nest) and type(nest) is type(value):
            yield from parts_of(nest) or ()
        elif isinstance(nest, Mapping):
            known = {str(key): key for key in keys}
            for key, item in nest.items():
                if str(key) not in known:
                    hint = nearest(key, known)
                    raise OptionError(
                        f"{self.what} names {shown(key)}, which is not among {name}: {hint}There "
                        f"are {', '.join(known) or 'none'}"
                    )
                yield known[str(key)], item
        else:
            raise OptionError(
                f"{self.what} does not fit {name}: got {shown(nest)} for {kind_of(value)}. Write a "
                f"nest like it, with {{axis: range}} for each tensor"
            )

    def _tensor(self, nest: Any, tensor: torch.Tensor, path: str) -> None:
        name = self.call.shown(path)
        if isinstance(nest, str):
            items: list[tuple[Any, Any]] = list(axes_from_text([f"{name}={nest}"])[name].items())
        elif isinstance(nest, Mapping):
            items = list(nest.items())
        elif isinstance(nest, (list, tuple)):
            items = list(enumerate(nest))
        else:
            raise OptionError(
                f"{self.what} does not fit {name}: got {shown(nest)}, it takes {{axis: range}}; "
                f"{FORMS}"
            )
        for key, given in items:
            axis = int(key) if isinstance(key, str) and key.isdecimal() else key
            if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < tensor.ndim:
                raise OptionError(
                    f"{self.what}: {name} has {tensor.ndim} axes, none is {shown(key)}: its shape "
                    f"is {list(tensor.shape)}, and axes count from 0"
                )
            where = f"{self.what}: {name}, axis {axis}"
            self._add(path, axis, given, tensor.shape[axis], where)

    def _add(self, path: str, axis: int, given: Any, size: int, where: str) -> None:
        found = range_from(given, where)
        if found is None:
            return
        if found.fixed is not None and found.fixed != size:
            raise OptionError(
                f"{where} is to have the one size {found.fixed}, and the example has {size}: give "
                f"an example of that size, or a range, such as ({min(size, found.fixed)}, "
                f"{max(size, found.fixed)})"
            )
        if size not in found:
            raise OptionError(
                f"{where} is {size} in the example, outside of its range, {found}: give an example "
                "of a size inside of it, or another range"
            )
        if found.fixed is not None:
            return
        if axis != NUMBER and size < 2 and not found.optional:
            raise OptionError(
                f"{where} is {size} in the example, which PyTorch compiles as a constant whatever "
                "the range: give an example whose size there is 2 or more"
            )
        self.found.setdefault(path, {})[axis] = found

    def check_shared(self) -> None:
        """Refuse a ``Dim`` that stands for sizes which differ, or has two ranges."""
        first: dict[str, tuple[str, Range, int]] = {}
        for path, axes in self.found.items():
            for axis, item in axes.items():
                name = getattr(item.dim, "__name__", None)
                if name is None:
                    continue
                value = self.call.leaves[path]
                size = value if axis == NUMBER else value.shape[axis]
                where = f"axis {axis} of {self.call.shown(path)}"
                other, known, before = first.setdefault(name, (where, item, size))
                if known != item:
                    raise OptionError(
                        f"{self.what}: Dim {name!r} has two ranges, {known} for {other} and {item} "
                        f"for {where}: make one Dim, and use it for both"
                    )
                if before != size:
                    raise OptionError(
                        f"{self.what}: Dim {name!r} stands for {other}, which is {before} in the "
                        f"example, and for {where}, which is {size}: give examples of one size, or "
                        "two Dims"
                    )

    def _unknown(self, key: Any) -> OptionError:
        call = self.call
        names = [call.shown(path) for path in call.leaves]
        roots = dict.fromkeys([*call.names[: len(call.args)], *call.kwargs])
        left_out = [name for name in (*call.names, *call.others) if name not in roots]
        if key in left_out:
            return OptionError(
                f"{self.what} names {shown(key)}, which the example arguments leave out: give an "
                "example for it"
            )
        hint = nearest(key, [*roots, *names])
        given = ", ".join(dict.fromkeys(names)) or "none"
        return OptionError(
            f"{self.what} names {shown(key)}, which is not among the arguments ({given}): "
            f"{hint or 'write one of these, or the place of an argument'}".rstrip()
        )


def _entries(nests: Sequence[Any]) -> str:
    return f"{len(nests)} {'entry' if len(nests) == 1 else 'entries'}"


def _is_nest(value: Any) -> bool:
    """Tell ``({0: range}, None)``, one entry a tensor, from ``(range, None)``, one an axis."""
    entries = value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(item, Mapping) for item in entries) and all(
        item is None or isinstance(item, Mapping) for item in entries
    )


def mark_axes(axes: Axes, call: Arguments) -> None:
    """Tell Dynamo which axes of arguments vary.

    Their ranges go to the engine's profile and not to Dynamo: it refuses a range of which its
    guards exclude one size, such as the odd ones, and a program that runs engines gives it none.

    Raises:
        OptionError: a number has a range, which ``torch.compile`` has no word for.
    """
    for path, ranges in axes.items():
        for axis, item in ranges.items():
            if axis == NUMBER:
                raise OptionError(
                    f"dynamic_shapes: {call.shown(path)} is an integer: singlecard.export takes a "
                    "range for it. Leave it out here, where only axes of tensors have ranges"
                )
            if item.optional:
                torch._dynamo.maybe_mark_dynamic(call.leaves[path], axis)
            else:
                torch._dynamo.mark_dynamic(call.leaves[path], axis)


def to_profile(axes: Axes, call: Arguments) -> tuple[Span, ...]:
    """Return what option ``profiles`` says of the same ranges; of those open at both ends, nothing.

    An end that is open is the one that an engine has where PyTorch knows none.
    """
    spans = []
    for path, ranges in axes.items():
        for axis, item in ranges.items():
            if axis == NUMBER or (item.min is None and item.max is None and item.opt is None):
                continue
            high = UNBOUNDED
            while high < max(call.leaves[path].shape[axis], item.min or 1):
                high *= 2
            spans.append(Span(path, axis, *item.closed(2, high)))
    return tuple(spans)


def to_dims(axes: Axes, call: Arguments) -> tuple[Any, Any]:
    """Return what ``torch.export`` takes for the same ranges: nests like args and like kwargs.

    Raises:
        OptionError: something varies in a container that is no dict, list or tuple.
    """

    def nest(value: Any, path: str) -> Any:
        if path in axes:
            dims = {axis: _dim(item) for axis, item in axes[path].items()}
            return dims.get(NUMBER, dims)
        inside = any(other.startswith(f"{path}.") for other in axes)
        if not inside:
            return {} if isinstance(value, torch.Tensor) else None
        if isinstance(value, Mapping):
            return {key: nest(item, f"{path}.{key}") for key, item in value.items()}
        if not isinstance(value, (list, tuple)):
            raise OptionError(
                f"dynamic_shapes: {call.shown(path)} is {kind_of(value)}, in which nothing can "
                "vary in an artifact: pass its tensors as arguments, or in a dict"
            )
        items = [nest(item, f"{path}.{place}") for place, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    placed = tuple(nest(value, str(place)) for place, value in enumerate(call.args))
    return placed, {name: nest(value, name) for name, value in call.kwargs.items()}


def _dim(item: Range) -> Any:
    """Return one axis; of a range, ``torch.export`` finds out itself which sizes are equal."""
    return Dim.DYNAMIC(min=item.min, max=item.max) if item.dim is None else item.dim
