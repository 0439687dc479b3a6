"""Conditions under which an op is lowered: data that decide, explain and document.

A condition answers `refusal` with one sentence that holds the limit and the value met, or None.
Its `text` is the same limit as documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.lowering.call import Call, tensors_in

#: What TensorRT's ``Dims`` holds (1.7.1.116: a longer tuple is a TypeError of the binding).
MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Condition:
    """One limit of an op: what it says, and how a call is held against it."""

    text: str
    refusal: Callable[[Call], str | None]


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class dtype:
    """Limits on the element type of the tensor argument ``name``."""

    name: str

    def one_of(self, *allowed: torch.dtype) -> Condition:
        names = ", ".join(type_name(item) for item in allowed)
        text = f"`{self.name}` is {names}"

        def refusal(call: Call) -> str | None:
            for value in tensors_in(call.values[self.name]):
                if value.dtype not in allowed:
                    met = type_name(value.dtype)
                    return f"{call.op} takes {names} as {self.name}, got {met}"
            return None

        return Condition(text, refusal)

    @property
    def floating(self) -> Condition:
        return self.one_of(torch.float32, torch.float16, torch.bfloat16)

    @property
    def integral(self) -> Condition:
        return self.one_of(torch.int32, torch.int64)

    @property
    def numeric(self) -> Condition:
        """Numbers, not truth values."""
        return self.one_of(torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.int64)


@dataclass(frozen=True)
class rank:
    """Limits on the number of dimensions of the tensor argument ``name``."""

    name: str

    def between(self, low: int, high: int) -> Condition:
        span = f"{low}" if low == high else f"{low} to {high}"
        text = f"`{self.name}` has {span} dimensions"

        def refusal(call: Call) -> str | None:
            for value in tensors_in(call.values[self.name]):
                if not low <= value.ndim <= high:
                    return f"{call.op} takes {span} dimensions, {self.name} has {value.ndim}"
            return None

        return Condition(text, refusal)


@dataclass(frozen=True)
class arg:
    """Limits on the value of the argument ``name``."""

    name: str

    def at_most(self, limit: int) -> Condition:
        def refusal(call: Call) -> str | None:
            value = call.values[self.name]
            if isinstance(value, int) and value > limit:
                return f"{call.op} takes {self.name} <= {limit} in TensorRT, got {value}"
            return None

        return Condition(f"`{self.name}` <= {limit}", refusal)

    def one_of(self, *allowed: Any) -> Condition:
        def refusal(call: Call) -> str | None:
            value = call.values[self.name]
            if value not in allowed:
                return f"{call.op} is lowered for {self.name} in {list(allowed)}, got {value!r}"
            return None

        return Condition(f"`{self.name}` in {list(allowed)}", refusal)

    @property
    def known(self) -> Condition:
        """The argument is a number now, not a symbol or a tensor."""

        def refusal(call: Call) -> str | None:
            value = call.values[self.name]
            items = value if isinstance(value, (list, tuple)) else [value]
            for item in items:
                if isinstance(item, (torch.SymInt, torch.SymFloat, torch.Tensor)):
                    return f"{call.op} needs {self.name} when the engine is built, got {item}"
            return None

        return Condition(f"`{self.name}` is known at build time", refusal)

    @property
    def static_shape(self) -> Condition:
        """All extents of the tensor argument are known now."""

        def refusal(call: Call) -> str | None:
            for value in tensors_in(call.values[self.name]):
                if any(isinstance(size, torch.SymInt) for size in value.shape):
                    return (
                        f"{call.op} needs a static shape for {self.name}, got {list(value.shape)}"
                    )
            return None

        return Condition(f"`{self.name}` has a static shape", refusal)

    @property
    def constant(self) -> Condition:
        """The tensor argument is a frozen weight, or absent."""

        def refusal(call: Call) -> str | None:
            value = call.arguments[self.name]
            if isinstance(value, fx.Node) and value.op != "get_attr":
                return f"{call.op} needs a constant {self.name}, got a value computed at run time"
            return None

        return Condition(f"`{self.name}` is constant", refusal)


def when(text: str, holds: Callable[[Call], bool], met: Callable[[Call], Any]) -> Condition:
    """A condition of any form: ``text`` completes '<op> is lowered when ...'."""

    def refusal(call: Call) -> str | None:
        return None if holds(call) else f"{call.op} is lowered when {text}, got {met(call)}"

    return Condition(text, refusal)


def first_refusal(conditions: Iterable[Condition], call: Call) -> str | None:
    """Return the reason of the first condition that a call does not meet."""
    for condition in conditions:
        reason = condition.refusal(call)
        if reason is not None:
            return reason
    return None
