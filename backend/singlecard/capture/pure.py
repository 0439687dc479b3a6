"""Ops that a file may name: they compute, and do nothing else.

What is read from a file may have been written by anybody. By its schema, an op on this list writes
to nothing that it is given, draws no random numbers, and takes no path, storage, generator, stream,
object or function: tensors, numbers, and words that choose between ways to compute.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import torch

#: Kinds of arguments, without what says that there are several, or may be none.
_ARGUMENTS = frozenset(
    {
        "Tensor", "bool", "float", "int", "number", "str",
        "Device", "Layout", "MemoryFormat", "ScalarType", "SymBool", "SymFloat", "SymInt",
    }
)  # fmt: skip

#: Arguments that take a word, by name. None is a path, or the name of a library.
_WORDS = frozenset(
    {
        "approximate", "driver", "equation", "indexing", "interpolation", "kind", "mode",
        "normalization", "ord", "padding_mode", "reduce", "rounding_mode", "side", "UPLO",
    }
)  # fmt: skip

_MANY = re.compile(r"Optional\[|List\[|\]")

#: Namespaces that come with PyTorch, and our own.
SPACES = ("aten", "prims", "singlecard")

#: Looks at memory whose names begin as those of PyTorch's inner workings do.
_OWN_LOOKS = ("_conj", "_neg_view", "_reshape_alias", "_unsafe_view")

#: Ops that read memory which nothing has been written to.
_UNWRITTEN = re.compile(r"(new_)?empty\w*|_empty\w*")


@functools.cache
def impurity(op: torch._ops.OpOverload) -> str:
    """Return why a file may not name an op, going by its schema; or ''."""
    schema = op._schema
    if schema.is_mutable or any(_writes(item) for item in (*schema.arguments, *schema.returns)):
        return "it writes to what it is given"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "it draws random numbers"
    if not schema.returns:
        return "it gives nothing"
    for argument in schema.arguments:
        kind = _MANY.sub("", str(argument.real_type))
        if kind not in _ARGUMENTS:
            return f"its argument {argument.name} is a {kind}"
        if kind == "str" and argument.name not in _WORDS:
            return f"its argument {argument.name} is a text"
    for result in schema.returns:
        kind = _MANY.sub("", str(result.real_type))
        if kind not in _ARGUMENTS - {"str"}:
            return f"it gives a {kind}"
    return ""


def _writes(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def is_look(op: torch._ops.OpOverload) -> bool:
    """Tell whether an op only looks at its first argument: another shape of the same memory."""
    name = op._schema.name.partition("::")[2]
    if impurity(op) or not op._schema.arguments or (name[0] == "_" and name not in _OWN_LOOKS):
        return False
    alias = op._schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


def leaves_unwritten(op: torch._ops.OpOverload) -> bool:
    """Tell whether an op gives memory as it finds it, which may hold what others left there."""
    return _UNWRITTEN.fullmatch(op._schema.name.partition("::")[2]) is not None
