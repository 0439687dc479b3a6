"""Sizes that vary: the one vocabulary, and the one reader of a single range.

``Axes`` says for each input, by its path, which of its axes vary and between which sizes. A path is
the place or the name of an argument and the way into it: ``0``, ``input_ids``, ``batch.images.0``.
Whatever form a range comes in, `range_from` reads it: ``(min, max)``, ``(min, opt, max)``,
``"2:4:16"``, a ``torch.export.Dim``. What belongs to a model's arguments is in
`singlecard.report.arguments`.

Imports no PyTorch: a command line that is mistyped need not wait for it.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from singlecard.checking import shown
from singlecard.errors import OptionError

#: The largest extent of a tensor that TensorRT takes, whose sizes in a profile are of 32 bits.
LARGEST = 2**31 - 1

#: The axis of a number, which has none.
NUMBER = -1

FORMS = "a range is (min, max), (min, opt, max), 'min:opt:max' or a torch.export.Dim"

_TEXT_FORM = (
    "write min:opt:max for each axis, with commas between, such as 'input_ids=1:8:32,1:128:512'; "
    "one number for a fixed axis; nothing for one that stays as it is"
)


@dataclass(frozen=True)
class Range:
    """The sizes that one axis takes.

    Attributes:
        min, max: the ends, which belong to it; None where the end is open.
        opt: the size that an engine is tuned for; None: the geometric mean of the ends.
        dim: the object of ``torch.export`` that the range was given as, if it was.
    """

    min: int | None = None
    opt: int | None = None
    max: int | None = None
    dim: Any = field(default=None, compare=False, repr=False)

    @property
    def fixed(self) -> int | None:
        """The one size, where there is only one."""
        return self.min if self.min == self.max else None

    @property
    def optional(self) -> bool:
        """Whether PyTorch decides if the size varies: ``Dim.AUTO``."""
        return getattr(getattr(self.dim, "type", None), "name", "") == "AUTO"

    def closed(self, low: int, high: int) -> tuple[int, int, int]:
        """Return min, opt and max, with these ends where they are open."""
        low = low if self.min is None else self.min
        high = max(low, high) if self.max is None else self.max
        low = min(low, high)
        opt = round(math.sqrt(low * high)) if self.opt is None else self.opt
        return low, min(max(opt, low), high), high

    def __contains__(self, size: int) -> bool:
        low, high = self.min, self.max
        return (low is None or size >= low) and (high is None or size <= high)

    def __str__(self) -> str:
        """Return it as `range_from` reads it, or in words where it is open."""
        if self.fixed is not None:
            return str(self.fixed)
        if self.min is None or self.max is None:
            ends = [f"from {self.min}"] if self.min is not None else []
            ends += [f"up to {self.max}"] if self.max is not None else []
            return " ".join(ends) or "any size"
        return ":".join(str(size) for size in (self.min, self.opt, self.max) if size is not None)


#: For each input, by its path, the ranges of its axes.
Axes: TypeAlias = Mapping[str, Mapping[int, Range]]


def range_from(given: Any, where: str) -> Range | None:
    """Return the range that a value stands for; None for an axis that keeps its size.

    Args:
        given: None or ``Dim.STATIC``; one size; ``(min, max)`` or ``(min, opt, max)``, whose ends
            may be None; such a text as ``"2:4:16"``; a `Range`; a ``torch.export.Dim``.
        where: names the option, the input and the axis, for messages.

    Raises:
        OptionError: it is none of these, or its sizes are not in order.
    """
    if given is None or isinstance(given, Range):
        return given
    if isinstance(given, str):
        return _from_text(given.strip(), where)
    if isinstance(given, (tuple, list)):
        ends = [None if size is None else size_from(size, where) for size in given]
        if len(ends) == 2:
            return _ordered(Range(ends[0], None, ends[1]), where)
        if len(ends) == 3:
            return _ordered(Range(*ends), where)
        raise OptionError(f"{where} has {shown(given)}: it takes (min, max) or (min, opt, max)")
    if hasattr(given, "min") and hasattr(given, "max") and not hasattr(given, "ndim"):
        if getattr(getattr(given, "type", None), "name", "") == "STATIC":
            return None
        # Dim("n") begins at 0 and ends at PyTorch's infinity, which is no int.
        low = given.min if isinstance(given.min, int) and given.min > 0 else None
        high = given.max if isinstance(given.max, int) else None
        return _ordered(Range(low, None, high, given), where)
    if hasattr(given, "__index__") and not isinstance(given, bool):
        size = size_from(given, where)
        return Range(size, size, size)
    raise OptionError(f"{where} has {shown(given)}: {FORMS}")


def size_from(given: Any, where: str) -> int:
    """Return one size as an int.

    Raises:
        OptionError: it is no integer that an extent can be.
    """
    try:
        size = None if isinstance(given, bool) else operator.index(given)
    except Exception:  # a tensor of several elements has an index, which raises
        size = None
    if size is None or not 1 <= size <= LARGEST:
        raise OptionError(f"{where} has {shown(given)}: sizes are integers >= 1, at most {LARGEST}")
    return size


def _ordered(given: Range, where: str) -> Range:
    low, opt, high = given.min, given.opt, given.max
    if low is not None and high is not None and low > high:
        raise OptionError(f"{where} has min {low} > max {high}: write the smaller size first")
    if opt is not None and opt not in given:
        raise OptionError(f"{where}: got {low}, {opt}, {high}, {_ORDER}")
    return given


_ORDER = "it takes min <= opt <= max"


def _from_text(text: str, where: str) -> Range | None:
    if not text:
        return None
    if not re.fullmatch(r"\d+( *: *\d+){0,2}", text, re.ASCII):
        raise OptionError(f"{where}: {text!r} is no size: {_TEXT_FORM}")
    sizes = [int(size) for size in text.split(":")]
    if not 1 <= min(sizes) <= max(sizes) <= LARGEST:
        raise OptionError(f"{where}: got {text}, sizes are >= 1 and at most {LARGEST}")
    if len(sizes) == 2:
        raise OptionError(
            f"{where}: {text!r} has two sizes: write three, min:opt:max, such as "
            f"{sizes[0]}:{sizes[1]}:{sizes[1]}"
        )
    if sizes != sorted(sizes):
        raise OptionError(f"{where}: got {text}, {_ORDER}")
    return Range(sizes[0], sizes[len(sizes) // 2], sizes[-1])


def axes_from_text(texts: Sequence[str]) -> Axes:
    """Return the sizes that a command line gives, in one argument or several.

    >>> {path: text_from_axes(axes) for path, axes in axes_from_text(["a=1:8:32,128; b=2"]).items()}
    {'a': '1:8:32,128', 'b': '2'}

    Raises:
        OptionError: a text is malformed, or an input comes twice.
    """
    found: dict[str, Mapping[int, Range]] = {}
    for item in ";".join(texts).split(";"):
        if not item.strip():
            continue
        name, equals, axes = item.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--shapes {item.strip()!r} names no input: {_TEXT_FORM}")
        if name in found:
            raise OptionError(f"--shapes gives {name!r} twice: write all its axes with commas")
        found[name] = axes_of_input(name, axes)
    if not found:
        raise OptionError(f"--shapes is empty: {_TEXT_FORM}")
    return found


def axes_of_input(name: str, text: str) -> Mapping[int, Range]:
    """Return the sizes of one input, ``1:8:32,128``: those of its first axes.

    Raises:
        OptionError: the text is malformed.
    """
    axes: dict[int, Range] = {}
    for place, item in enumerate(text.split(",")):
        found = _from_text(item.strip(), f"the shapes of {name!r}, axis {place}")
        if found is not None:
            axes[place] = found
    if not axes:
        raise OptionError(f"the shapes of {name!r} give no size: {_TEXT_FORM}")
    return axes


def text_from_axes(axes: Mapping[int, Range]) -> str:
    """Return the sizes of one input as `axes_of_input` reads them."""
    return ",".join(str(axes.get(place, "")) for place in range(max(axes) + 1))


def remarks_on(axes: Axes) -> list[str]:
    """Return what a user should know of ranges that are right in themselves."""
    ones = [
        f"axis {axis} of {path}"
        for path, ranges in axes.items()
        for axis, item in ranges.items()
        if item.min == 1 and item.fixed is None
    ]
    if not ones:
        return []
    return [
        f"PyTorch compiles a size of 1 apart, as another engine: build once more with the one size "
        f"1 for {', '.join(ones)}, if calls have it"
    ]


def nearest(name: object, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``did you mean 'x'? ``, or nothing where no name is near."""
    close = difflib.get_close_matches(str(name), list(names), 1, cutoff)
    return f"did you mean {close[0]!r}? " if close else ""
