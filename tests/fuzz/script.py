"""A generated program: a module, the calls that it gets, and the way it is compiled, as text.

What is printed is what runs, so that a program that fails can be pasted into a test as it is.
"""

from __future__ import annotations

import dataclasses
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

#: Compiled programs must have a file name that Dynamo does not take for Python's own.
FILE = "generated_program.py"

_HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn

from tests.fuzz import outside  # noqa: F401  (declares the ops of torch.ops.fuzz)
"""


@dataclass(frozen=True)
class Script:
    """A program.

    Attributes:
        parts: statements of the module's ``__init__``.
        names: arguments of its ``forward``.
        body: statements of ``forward``.
        returns: the expression that it returns.
        calls: the arguments of each call, as a tuple's text.
        options: of the backend.
        dynamic: as `torch.compile` takes it.
        again: whether all calls are repeated by a second compilation, on the first one's cache.
        steps: names of the steps that it was written from.
    """

    parts: tuple[str, ...]
    names: tuple[str, ...]
    body: tuple[str, ...]
    returns: str
    calls: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    dynamic: bool | None = None
    again: bool = False
    steps: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the program as a module of Python that ends in a test."""
        lines = [_HEAD, "", "class Model(nn.Module):"]
        if self.parts:
            lines += ["    def __init__(self):", "        super().__init__()"]
            lines += [f"        {part}" for part in self.parts] + [""]
        lines += [f"    def forward({', '.join(('self', *self.names))}):"]
        lines += [f"        {line}" for line in (*self.body, f"return {self.returns}")]
        lines += ["", "", "CALLS = [", *(f"    lambda: {call}," for call in self.calls), "]"]
        arguments = f"options={dict(self.options)!r}, dynamic={self.dynamic}, again={self.again}"
        lines += [
            "",
            "",
            "def test_program() -> None:",
            "    from tests.fuzz.checking import check",
        ]
        lines += ["", f"    check(Model, CALLS, {arguments})", ""]
        return "\n".join(lines)

    def load(self) -> Loaded:
        """Run the text."""
        text = self.text()
        linecache.cache[FILE] = (len(text), None, text.splitlines(keepends=True), FILE)
        space: dict[str, Any] = {"__name__": "generated_program"}
        exec(compile(text, FILE, "exec"), space)
        return Loaded(space["Model"], space["CALLS"])

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Loaded:
    """The class and the calls of a program that was run."""

    model: type[nn.Module]
    calls: list[Callable[[], tuple[Any, ...]]]
