"""Writes forward line by line, and runs each line in PyTorch for every call as it is written.

So the writer knows the type and the sizes of each value in each call, and a step that does not fit
what is there, at any of the sizes, is left out. Whether an axis varies is seen from the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz import outside  # noqa: F401  (declares the ops of torch.ops.fuzz)

#: More elements than this make programs slow, and find nothing that fewer do not.
MOST_ELEMENTS = 16384


class Unfit(Exception):
    """A step has nothing to work on, or PyTorch refuses it."""


class Choices:
    """Numbers of a gene, one after the other; zero where they are used up."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = list(reversed(numbers))

    def number(self) -> int:
        return self._numbers.pop() if self._numbers else 0

    def below(self, count: int) -> int:
        return self.number() % count

    def one_of(self, *items: Any) -> Any:
        return items[self.below(len(items))]

    def chance(self, share: int) -> bool:
        """True once in ``share`` times; never where numbers have shrunk to zero."""
        return self.number() % share == share - 1


@dataclass(frozen=True)
class Line:
    """A statement, the names that it gives values to, and whether it changes what is there."""

    text: str
    names: tuple[str, ...]
    effect: bool = False

    @property
    def used(self) -> set[str]:
        return set(re.findall(r"\b[vk]\d+\b|\bin\d+\b", self.text)) - set(self.names)


class Writer:
    """The program so far, and its values in each call.

    Args:
        worlds: number of calls.
        largest: values beyond this in magnitude are unfit: a half has no more than 65504.
    """

    def __init__(self, worlds: int, largest: float) -> None:
        self.largest = largest
        self.parts: list[str] = []
        self.part_names: list[str] = []
        self.lines: list[Line] = []
        self.names: list[str] = []
        self.values: list[str] = []
        self.choices = Choices(())
        self.spaces: list[dict[str, Any]] = []
        for _ in range(worlds):
            module = nn.Module()
            module.eval()
            self.spaces.append({"torch": torch, "F": F, "nn": nn, "self": module})

    # What is there.

    def each(self, expression: str) -> list[Any]:
        """Evaluate an expression in every call."""
        try:
            with torch.no_grad():
                code = compile(expression, "<expression>", "eval")
                return [eval(code, space) for space in self.spaces]
        except Exception as error:
            raise Unfit(f"{expression}: {error}") from error

    def tensors(self, name: str) -> list[Tensor]:
        return [space[name] if name in space else eval(name, space) for space in self.spaces]

    def first(self, name: str) -> Any:
        return self.tensors(name)[0]

    def fitting(self, fits: Callable[[Any], bool]) -> list[str]:
        """Return the values that fit in every call, the latest first."""
        return [
            name
            for name in reversed(self.values)
            if all(fits(value) for value in self.tensors(name))
        ]

    def pick(self, fits: Callable[[Any], bool]) -> str:
        """Choose one of the values that fit, in half of all cases the latest."""
        found = self.fitting(fits)
        if not found:
            raise Unfit("no value fits")
        number = self.choices.number()
        return found[0] if number < 128 else found[number % len(found)]

    def floats(self, fits: Callable[[Tensor], bool] = lambda value: True) -> str:
        """Choose a tensor of floats."""
        return self.pick(
            lambda value: isinstance(value, Tensor) and value.is_floating_point() and fits(value)
        )

    def size(self, name: str, axis: int) -> str:
        """Return the text of an extent: a number where it is the same in every call."""
        extents = self._extents(name, axis)
        if len(extents) == 1 and not self.choices.chance(4):
            return str(extents.pop())
        return f"{name}.shape[{axis}]"

    def known(self, name: str, axis: int) -> int:
        """Return an extent that a weight can have: the same in every call."""
        extents = self._extents(name, axis)
        if len(extents) != 1:
            raise Unfit("the extent varies")
        (extent,) = extents
        if not extent:
            raise Unfit("the extent is zero")
        return int(extent)

    def _extents(self, name: str, axis: int) -> set[int]:
        try:
            return {value.shape[axis] for value in self.tensors(name)}
        except IndexError as error:
            raise Unfit(f"no axis {axis}") from error

    # What is added.

    def part(self, expression: str) -> str:
        """Add an attribute of the module; return how forward writes it."""
        name = f"m{len(self.part_names)}"
        statement = f"self.{name} = {expression}"
        self._run(statement)
        for space in self.spaces:
            if isinstance(getattr(space["self"], name), nn.Module):
                getattr(space["self"], name).eval()
        self.parts.append(statement)
        self.part_names.append(name)
        return f"self.{name}"

    def buffer(self, expression: str) -> str:
        """Add a buffer; return how forward writes it."""
        name = f"m{len(self.part_names)}"
        statement = f"self.register_buffer({name!r}, {expression})"
        self._run(statement)
        self.parts.append(statement)
        self.part_names.append(name)
        return f"self.{name}"

    def parts_of(self, kind: str) -> list[str]:
        """Return the attributes that hold a kind of module, the latest first."""
        return [
            f"self.{name}"
            for name in reversed(self.part_names)
            if type(getattr(self.spaces[0]["self"], name)).__name__ == kind
        ]

    def line(self, expression: str, count: int = 1, like: str = "") -> str:
        """Add a line that names what an expression gives; return the (last) name.

        Args:
            expression: what is written.
            count: how many results it has.
            like: gives the same here, where the expression itself would be compiled by PyTorch.
        """
        names = tuple(f"v{len(self.values) + place}" for place in range(count))
        target = ", ".join(names)
        self._run(f"{target} = {like or expression}")
        for name in names:
            for value in self.tensors(name):
                self._check(value)
        self.lines.append(Line(f"{target} = {expression}", names))
        self.values += names
        return names[-1]

    def statement(self, text: str) -> None:
        """Add a line for what it changes."""
        self._run(text)
        self.lines.append(Line(text, (), True))

    def _run(self, statement: str) -> None:
        try:
            with torch.no_grad():
                code = compile(statement, "<statement>", "exec")
                for space in self.spaces:
                    exec(code, space)
        except Exception as error:
            raise Unfit(f"{statement}: {error}") from error

    def _check(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            return
        if value.numel() > MOST_ELEMENTS or value.ndim > 9:
            raise Unfit("too large")
        if value.is_floating_point() and value.numel():
            if not float(value.abs().max()) <= self.largest:  # NaN too
                raise Unfit("out of range")

    def attempt(self, step: Callable[[Writer], Any], choices: Sequence[int]) -> bool:
        """Run a step; take back what it added if it does not fit."""
        kept = len(self.lines), len(self.parts), len(self.values), len(self.part_names)
        self.choices = Choices(choices)
        try:
            step(self)
            return True
        except Unfit:
            lines, parts, values, names = kept
            for space in self.spaces:
                for name in self.part_names[names:]:
                    if hasattr(space["self"], name):
                        delattr(space["self"], name)
            del self.lines[lines:], self.parts[parts:]
            del self.values[values:], self.part_names[names:]
            return False
