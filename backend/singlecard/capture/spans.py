"""The ranges that the user gives dynamic sizes, by the name of an input and an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.capture.sources import input_path, is_of_module, source_of
from singlecard.options import Span
from singlecard.warning import warn_once

#: Smallest, usual and largest value of a size.
Triple = tuple[int, int, int]


def symbols_of(module: fx.GraphModule, spans: Sequence[Span]) -> dict[sympy.Symbol, Triple]:
    """Return the range of each size that the user's spans speak of, in one graph of Dynamo's.

    Dynamo sees a module called with ``*args``: what is given by position has no name there.

    A span that fits nothing is warned of once: its input is not there, or its size does not vary.
    """
    if not spans:
        return {}
    shapes: dict[str, Sequence[Any]] = {}
    for node in module.graph.find_nodes(op="placeholder"):
        value, source = node.meta.get("example_value"), source_of(node)
        if isinstance(value, torch.Tensor) and source and not is_of_module(source):
            shapes[input_path(source)] = value.shape
    found: dict[sympy.Symbol, Triple] = {}
    for span in spans:
        reason = _add(found, shapes, span)
        if reason:
            warn_once(f"option profiles: {reason}")
    return found


def _add(
    found: dict[sympy.Symbol, Triple], shapes: Mapping[str, Sequence[Any]], span: Span
) -> str | None:
    shape = shapes.get(span.input)
    if shape is None:
        return f"no input of this graph is {span.input!r}; there are {', '.join(shapes) or 'none'}"
    if span.axis >= len(shape):
        return f"{span.input} has {len(shape)} dimensions, none of them is {span.axis}"
    size = shape[span.axis]
    expr = size.node.expr if isinstance(size, torch.SymInt) else None
    if expr is not None and not isinstance(expr, sympy.Symbol) and expr.free_symbols:
        return None  # such as 2 * s, which varies with what s is the size of
    if not isinstance(expr, sympy.Symbol):
        return (
            f"axis {span.axis} of {span.input} does not vary, it is {size}: compile with "
            "dynamic=True, or mark it with torch._dynamo.mark_dynamic"
        )
    low, usual, high = span.smallest, span.usual, span.largest
    if expr in found:
        low, high = max(low, found[expr][0]), min(high, found[expr][2])
        if low > high:
            return (
                f"axis {span.axis} of {span.input} is as long as another axis, which was given "
                f"{found[expr][0]} to {found[expr][2]}: {span.smallest} to {span.largest} is "
                "left out"
            )
    found[expr] = (low, min(max(usual, low), high), high)
    return None
