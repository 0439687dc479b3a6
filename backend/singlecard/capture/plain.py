"""Values of graphs as plain ones that JSON can hold, and back.

Only what is named here can be read: a file can never lead to a function of somebody else's.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from singlecard.capture.pure import SPACES, impurity, is_look
from singlecard.capture.results import SizeAt

#: Numbers beyond this are no size, and their arithmetic would have no end.
_MOST = 2**63


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of numbers that refuses to make one that no size can be."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        for arg in args:
            if isinstance(arg, (list, tuple, str, bytes, dict)):
                raise NotPlain(f"a {type(arg).__name__} in the place of a number")
        if function is operator.pow and not _is_small_power(*args):
            raise NotPlain(f"{args[0]} to the power of {args[1]}, which is no size")
        result = function(*args)
        if isinstance(result, int) and not -_MOST <= result < _MOST:
            raise NotPlain(f"{str(function.__name__)} of {args}, which is no size")
        return result

    return call


def _is_small_power(base: Any, power: Any) -> bool:
    if not (isinstance(base, int) and isinstance(power, int)):
        return True  # floats end by themselves
    return abs(base) <= 1 or (0 <= power <= 64 and abs(base).bit_length() * power <= 128)


#: Functions that sizes are worked out with.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        f"operator.{name}": getattr(operator, name)
        for name in (
            "abs", "add", "and_", "eq", "floordiv", "ge", "gt", "le", "lt", "mod", "mul", "ne",
            "neg", "not_", "or_", "pow", "sub", "truediv",
        )
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "sqrt", "trunc")},
    **{
        f"torch.{name}": getattr(torch, name)
        for name in ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not")
    },
}  # fmt: skip


def _item(values: Any, place: Any) -> Any:
    """Return an item of what an op gave; a file cannot ask for more of it."""
    if not isinstance(values, (list, tuple)) or type(place) is not int:
        raise NotPlain(f"an item {place!r} of a {type(values).__name__}"[:200])
    return values[place]


_BOUNDED = {
    **{name: _bounded(function) for name, function in _FUNCTIONS.items()},
    "operator.getitem": _item,
}

_NAMES = {
    **{id(function): name for name, function in _FUNCTIONS.items()},
    **{id(function): name for name, function in _BOUNDED.items()},
    id(operator.getitem): "operator.getitem",
}

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
    if isinstance(value, complex):
        return {"complex": [value.real.hex(), value.imag.hex()]}
    raise NotPlain(f"{value!r} is no plain value"[:300])


def from_plain(value: Any) -> Any:
    """Return what `to_plain` was given.

    Raises:
        NotPlain: nothing is written so.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        ((kind, held),) = value.items()
        return _READERS[kind](held)
    except NotPlain:
        raise
    except _NO_VALUE as error:
        raise NotPlain(f"no value is written {value!r}"[:300]) from error


#: What readers raise for what was not written by `to_plain`.
_NO_VALUE = (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _float(text: Any) -> float:
    if not isinstance(text, str) or len(text) > 64:
        raise NotPlain("a number that is no text, or a long one")
    return float.fromhex(text) if "0x" in text else float(text)


def _device(text: Any) -> torch.device:
    if not isinstance(text, str) or not _DEVICE.fullmatch(text):
        raise NotPlain(f"{text!r} is no device"[:200])
    return torch.device(text)


def _place(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise NotPlain(f"{value!r} is no place"[:200])
    return value


_DEVICE = re.compile(r"(cpu|cuda|meta)(:\d{1,3})?")


def number_name(value: Any) -> str:
    """Return the name of a function of numbers.

    Raises:
        NotPlain: it is none.
    """
    if id(value) in _NAMES:
        return _NAMES[id(value)]
    raise NotPlain(f"{value!r} is no function of sizes")


def number_function(name: Any) -> Callable[..., Any]:
    """Return the function of numbers with a name; it makes no number that no size can be.

    Raises:
        NotPlain: none has it.
    """
    if isinstance(name, str) and name in _BOUNDED:
        return _BOUNDED[name]
    raise NotPlain(f"{name!r} is no op of this PyTorch ({torch.__version__}) for sizes"[:300])


def function_name(value: Any) -> str:
    """Return the name of a function of numbers, or of a look at a tensor.

    Raises:
        NotPlain: it is neither.
    """
    if isinstance(value, torch._ops.OpOverload) and value.namespace in SPACES:
        reason = _look_refusal(value)
        if reason:
            raise NotPlain(f"{value}: {reason}")
        return str(value)
    return number_name(value)


def function_named(name: Any) -> Callable[..., Any]:
    """Return the function of numbers, or the look at a tensor, with a name.

    Raises:
        NotPlain: none has it, or it does more.
    """
    if not isinstance(name, str):
        raise NotPlain(f"{name!r} is no name"[:200])
    space, _, rest = name.partition(".")
    if space not in SPACES:
        return number_function(name)
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(getattr(torch.ops, space), packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload) or str(found) != name:
        raise NotPlain(f"{name!r} is no op of this PyTorch ({torch.__version__})"[:300])
    reason = _look_refusal(found)
    if reason:
        raise NotPlain(f"{name}, which no file may name here: {reason}")
    return found


def _look_refusal(op: torch._ops.OpOverload) -> str:
    name = op._schema.name.partition("::")[2]
    if is_look(op) or name in _READS or (name in _LIKE_LOOKS and not impurity(op)):
        return ""
    return impurity(op) or "it does not only look at what it is given"


#: Ops that give a number of a tensor: a size, a stride, or its only element.
_READS = (
    "_local_scalar_dense",
    "sym_numel",
    "sym_size",
    "sym_storage_offset",
    "sym_stride",
)

#: Ops that look at a tensor, or copy it where they cannot.
_LIKE_LOOKS = ("contiguous", "reshape")

_READERS: dict[str, Callable[[Any], Any]] = {
    "float": lambda text: _float(text),
    "complex": lambda parts: complex(*map(_float, parts)),
    "list": lambda items: [from_plain(item) for item in items],
    "tuple": lambda items: tuple(from_plain(item) for item in items),
    "size": lambda place: SizeAt(_place(place)),
    "torch": _CONSTANTS.__getitem__,
    "device": lambda text: _device(text),
}
