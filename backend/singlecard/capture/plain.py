"""Values of graphs as plain ones that JSON can hold, and back.

Only what is named here can be read: a file can never lead to a function of somebody else's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from singlecard.capture.results import SizeAt

#: Functions that sizes are worked out with.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lt", "mod",
            "mul", "ne", "neg", "not_", "or_", "pow", "sub", "truediv",
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not")
    },
}  # fmt: skip

_NAMES = {id(function): name for name, function in _FUNCTIONS.items()}

#: PyTorch's own constants, by the name that they print as.
_CONSTANTS = {
    str(item): item
    for item in vars(torch).values()
    if isinstance(item, (torch.dtype, torch.layout, torch.memory_format))
}


class NotPlain(ValueError):
    """A value is of a kind that is not written to files, or a text names none that is."""


def to_plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        NotPlain: it is of another kind.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex() if math.isfinite(value) else str(value)}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [to_plain(item) for item in value]}
    if isinstance(value, SizeAt):
        return {"size": value.place}
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    return {"function": function_name(value)}


def from_plain(value: Any) -> Any:
    """Return what `to_plain` was given.

    Raises:
        NotPlain: nothing is written so.
    """
    if not isinstance(value, dict):
        return value
    try:
        ((kind, held),) = value.items()
        return _READERS[kind](held)
    except (KeyError, TypeError, ValueError) as error:
        raise NotPlain(f"no value is written {value!r}") from error


def function_name(value: Any) -> str:
    """Return the name of a function on sizes, or of an op of PyTorch's.

    Raises:
        NotPlain: it is neither.
    """
    if isinstance(value, torch._ops.OpOverload) and value.namespace in ("aten", "prims"):
        return str(value)
    if id(value) in _NAMES:
        return _NAMES[id(value)]
    raise NotPlain(f"{value!r} is no op of PyTorch's, and no plain value")


def function_named(name: str) -> Callable[..., Any]:
    """Return the function with a name.

    Raises:
        NotPlain: no op of PyTorch's has it.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if space in ("aten", "prims"):
        found = getattr(getattr(getattr(torch.ops, space), packet, None), overload, None)
        if isinstance(found, torch._ops.OpOverload):
            return found
    raise NotPlain(f"{name!r} is no op of this PyTorch ({torch.__version__})")


_READERS: dict[str, Callable[[Any], Any]] = {
    "float": lambda text: float.fromhex(text) if "0x" in text else float(text),
    "list": lambda items: [from_plain(item) for item in items],
    "tuple": lambda items: tuple(from_plain(item) for item in items),
    "size": SizeAt,
    "torch": _CONSTANTS.__getitem__,
    "device": torch.device,
    "function": function_named,
}
