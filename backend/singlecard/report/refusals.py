"""Ranges that PyTorch refuses, in the words of who gave them.

PyTorch speaks of ``L['args'][0].size()[1]``, of guards and of constraints, and does so after all
engines are built. What Dynamo knows of sizes when it hands over its graph is enough to say it
before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.axes import NUMBER, Axes, Range
from singlecard.capture.sources import input_path, is_of_module, source_of
from singlecard.errors import OptionError
from singlecard.report.arguments import Arguments

_CONSTANT = re.compile(
    r"(?:You marked|dimension) (.+?)(?:\.size\(\)\[(\d+)\]|\.shape\[(\d+)\])? as dynamic but your "
    r"code specialized it to be a constant \((\d+)\)"
)


def check_captured(inputs: Iterable[tuple[str, torch.Tensor]], axes: Axes, call: Arguments) -> None:
    """Compare the sizes that a model was captured with, and the ranges asked for.

    Args:
        inputs: fake tensors by path.
        axes: the ranges.
        call: what was captured.

    Raises:
        OptionError: a size does not vary, not that far, or not by itself.
    """
    same: dict[Any, tuple[str, Range]] = {}
    for path, tensor in inputs:
        for axis, item in axes.get(path, {}).items():
            if axis == NUMBER or item.optional or axis >= tensor.ndim:
                continue
            size, where = tensor.shape[axis], f"axis {axis} of input {call.shown(path)}"
            expr = _replaced(size)
            if expr.is_Integer:
                raise constant(where, int(expr), axes, call)
            _check_bounds(size, item, where)
            other, known = same.setdefault(expr, (where, item))
            if known != item:
                raise OptionError(
                    f"dynamic_shapes: {other} and {where} are as long as each other in this model, "
                    f"and have the ranges {known} and {item}: give inputs that are as long as each "
                    "other the same range"
                )


def inputs_of(graph: fx.GraphModule) -> Iterator[tuple[str, torch.Tensor]]:
    """Give the inputs of Dynamo's first graph of a call, by path."""
    for node in graph.graph.find_nodes(op="placeholder"):
        value, source = node.meta.get("example_value"), source_of(node)
        if isinstance(value, torch.Tensor) and source and not is_of_module(source):
            yield input_path(source), value


def _replaced(size: Any) -> sympy.Expr:
    if not isinstance(size, torch.SymInt):
        return sympy.Integer(size)
    return sympy.sympify(size.node.shape_env.replace(size.node.expr))


def _check_bounds(size: Any, item: Range, where: str) -> None:
    """Refuse a range beyond the sizes for which the model runs the same code."""
    expr = _replaced(size)
    bounds = size.node.shape_env.bound_sympy(expr)
    # A symbol begins at 2 by PyTorch's own rule, and 2 * s at 4: no guard says so.
    low = int(bounds.lower) if bounds.lower.is_Integer and expr.is_Symbol else None
    high = int(bounds.upper) if bounds.upper.is_Integer else None
    too_low = low is not None and item.min is not None and item.min < low and low > 2
    too_high = high is not None and item.max is not None and item.max > high
    if too_low or too_high:
        ends = [f"from {low}"] if low is not None and low > 2 else []
        ends += [f"up to {high}"] if high is not None else []
        raise OptionError(
            f"dynamic_shapes: {where} has the range {item}, and the model runs the same code only "
            f"for sizes {' '.join(ends)} (PyTorch's guards say so): ask for that range, and "
            "compile for the others apart, with an example of theirs"
        )


def constant(where: str, size: int, axes: Axes, call: Arguments) -> OptionError:
    """Return the error of an axis that the model makes a constant."""
    others = [
        f"axis {axis} of {call.shown(path)}"
        for path, value in call.leaves.items()
        if isinstance(value, torch.Tensor)
        for axis, extent in enumerate(value.shape)
        if extent == size and axis not in axes.get(path, {})
    ]
    name = getattr(call.model, "__name__", type(call.model).__name__)
    equal = f" ({others[0]} is {size} too, and has no range)" if others else ""
    return OptionError(
        f"dynamic_shapes: {name} does not let {where} vary: its code makes it a constant ({size}). "
        f"Give inputs that are as long as each other the same range{equal}, or leave this axis out"
    )


def refusal_of(error: Exception, axes: Axes, call: Arguments) -> OptionError | None:
    """Return what PyTorch's refusal of a range says, or None where the error is about another."""
    text = str(error)
    if not axes or not any(sign in text for sign in _SIGNS):
        return None
    found = _CONSTANT.search(text)
    if found is not None:
        source, axis = found[1], found[2] or found[3]
        if source.startswith("L["):
            path = call.path_of(input_path(source))
            where = f"axis {axis} of input {call.shown(path)}"
        else:
            where = f"the size {source}"
        return constant(where, int(found[4]), axes, call)
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    said = next((line for line in lines[1:] if line), lines[0]).rstrip(".")
    fixes = text.partition("Suggested fixes:")[2].strip().splitlines()
    cure = f"PyTorch suggests {fixes[0].strip()}" if fixes else "give ranges that satisfy this"
    return OptionError(f"dynamic_shapes: PyTorch refuses a range: {said}. {cure}")


#: What its errors about ranges have in them, through Dynamo and through torch.export.
_SIGNS = (
    "Constraints violated",
    "user-specified ranges and inferred ranges",
    "for the same symbolic dimension",
    "user-specified dim",
    "Expected input at",
)
