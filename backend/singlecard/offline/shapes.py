"""Sizes of a model's inputs as text: ``input_ids=1:8:32,1:128:512``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from singlecard.errors import OptionError

#: An axis: its one size, its range (smallest, usual, largest), or None: as long as in the example.
Axis = int | tuple[int, int, int] | None

_FORM = (
    "write smallest:usual:largest for each axis, with commas between, such as "
    "'input_ids=1:8:32,1:128:512'; one number for a fixed axis; nothing for one that stays as it is"
)


@dataclass(frozen=True)
class Shape:
    """The sizes that one input takes.

    Attributes:
        input: its name: a parameter, a place among the arguments, or a way into a container.
        axes: the first axes; those after them stay as they are.
    """

    input: str
    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"{self.input}={','.join(_axis_text(axis) for axis in self.axes)}"


def remarks_on(shapes: Sequence[Shape]) -> list[str]:
    """Return what a user should know of shapes that are right in themselves."""
    ones = [
        f"axis {place} of {shape.input}"
        for shape in shapes
        for place, axis in enumerate(shape.axes)
        if isinstance(axis, tuple) and axis[0] == 1
    ]
    if not ones:
        return []
    return [
        f"PyTorch compiles a size of 1 apart, as another engine: build once more with the one size "
        f"1 for {', '.join(ones)}, if calls have it"
    ]


def shapes_from_text(texts: Sequence[str]) -> tuple[Shape, ...]:
    """Return the shapes that a command line gives, in one argument or several.

    >>> [str(shape) for shape in shapes_from_text(["ids=1:8:32,128; mask=1:8:32"])]
    ['ids=1:8:32,128', 'mask=1:8:32']

    Raises:
        OptionError: a text is malformed, or an input comes twice.
    """
    shapes: dict[str, Shape] = {}
    for item in ";".join(texts).split(";"):
        if not item.strip():
            continue
        name, equals, axes = item.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--shapes {item.strip()!r} names no input: {_FORM}")
        if name in shapes:
            raise OptionError(f"--shapes gives {name!r} twice: write all its axes with commas")
        shapes[name] = shape_from_text(name, axes)
    if not shapes:
        raise OptionError(f"--shapes is empty: {_FORM}")
    return tuple(shapes.values())


def shape_from_text(name: str, text: str) -> Shape:
    """Return the shape of one input, given as the sizes of its axes.

    Raises:
        OptionError: the text is malformed.
    """
    axes = tuple(
        _axis_from_text(name, place, axis.strip()) for place, axis in enumerate(text.split(","))
    )
    if all(axis is None for axis in axes):
        raise OptionError(f"the shapes of {name!r} give no size: {_FORM}")
    return Shape(name, axes)


def _axis_from_text(name: str, place: int, text: str) -> Axis:
    if not text:
        return None
    if not re.fullmatch(r"\d+( *: *\d+){0,2}", text):
        raise OptionError(f"the shapes of {name!r}, axis {place}: {text!r} is no size: {_FORM}")
    sizes = [int(size) for size in text.split(":")]
    if min(sizes) < 1:
        raise OptionError(f"the shapes of {name!r}, axis {place}: got {text}, sizes are >= 1")
    if len(sizes) == 2:
        raise OptionError(
            f"the shapes of {name!r}, axis {place}: {text!r} has two sizes: write three, "
            f"smallest:usual:largest, such as {sizes[0]}:{sizes[1]}:{sizes[1]}"
        )
    if sizes != sorted(sizes):
        raise OptionError(
            f"the shapes of {name!r}, axis {place}: got {text}, it takes "
            "smallest <= usual <= largest"
        )
    return sizes[0] if sizes[0] == sizes[-1] else (sizes[0], sizes[1], sizes[2])


def _axis_text(axis: Axis) -> str:
    if axis is None:
        return ""
    return str(axis) if isinstance(axis, int) else ":".join(map(str, axis))
