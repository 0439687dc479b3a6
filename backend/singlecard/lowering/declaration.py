"""How an op is declared: its targets and its conditions stand next to the function that lowers it.

    @lowers(aten.relu.default)
    @accepts(dtype("self").floating)
    def relu(net, self): ...

The function is called with the net and the op's arguments by schema order: tensors of the network
for tensors, sizes for symbolic integers, and plain values for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from singlecard.lowering.conditions import Condition

Lowering = TypeVar("Lowering", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declaration:
    """One way to lower some ops: which, when and how.

    ``takes`` and ``gives`` are types beyond those that networks carry. Inside, these are int32.
    """

    targets: tuple[Any, ...]
    conditions: tuple[Condition, ...]
    lower: Callable[..., Any]
    family: str
    takes: frozenset[torch.dtype] = frozenset()
    gives: frozenset[torch.dtype] = frozenset()
    operands: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """The first line of the lowering function's docstring."""
        return (self.lower.__doc__ or "").strip().partition("\n")[0]


def accepts(*conditions: Condition) -> Callable[[Lowering], Lowering]:
    """Attach conditions to a lowering function."""

    def attach(function: Lowering) -> Lowering:
        function.__dict__["conditions"] = conditions
        return function

    return attach


def computes_with(*names: str) -> Callable[[Lowering], Lowering]:
    """Name arguments that are operands: symbolic numbers among them are tensors, of any sign.

    Other symbolic numbers are sizes, which TensorRT takes from shapes alone. The operands of
    pointwise ops need no naming.
    """

    def attach(function: Lowering) -> Lowering:
        function.__dict__["operands"] = names
        return function

    return attach


def lowers(
    *targets: Any, takes: Iterable[torch.dtype] = (), gives: Iterable[torch.dtype] = ()
) -> Callable[[Lowering], Lowering]:
    """Declare that a function lowers ``targets``; see `Declaration` for the types."""

    def attach(function: Lowering) -> Lowering:
        declaration = Declaration(
            targets,
            function.__dict__.get("conditions", ()),
            function,
            function.__module__.rpartition(".")[2],
            frozenset(takes),
            frozenset(gives),
            function.__dict__.get("operands", ()),
        )
        function.__dict__.setdefault("declarations", []).append(declaration)
        return function

    return attach
