"""Segments that stay in PyTorch, as programs of ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_symbols

from singlecard.capture.program import Program
from singlecard.errors import ArtifactError
from singlecard.lowering.call import op_name
from singlecard.partition import Segment
from singlecard.report.origin import first_line
from singlecard.runtime.runners import Runner, eager_runner, entrance_of

#: What a size that only a run tells is taken for while a segment is traced.
_UNTOLD = 3


class _Called(nn.Module):
    """A segment as a module."""

    def __init__(self, run: Runner) -> None:
        super().__init__()
        self.run = run

    def forward(self, *values: Any) -> tuple[Any, ...]:
        return tuple(self.run(values))


def export_segment(program: Program, segment: Segment) -> ExportedProgram:
    """Return a segment as a program that takes and gives flat values.

    Raises:
        ArtifactError: ``torch.export`` cannot capture it.
    """
    fakes = [node.meta["val"] for node in segment.inputs]
    examples = tuple(_example(fake) for fake in fakes)
    shapes = (tuple(_shape(fake) for fake in fakes),)
    module = _Called(eager_runner(program, segment))
    try:
        with torch.no_grad():
            return torch.export.export(module, examples, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        ops = dict.fromkeys(op_name(node) for node in segment.nodes if node.op == "call_function")
        raise ArtifactError(
            f"the part of the model that stays in PyTorch ({', '.join(ops)}) cannot be captured "
            f"by torch.export: {first_line(error)}. Export with fixed sizes, or without these ops"
        ) from error


def segment_runner(program: ExportedProgram) -> Runner:
    """Return what runs a segment."""
    module: Callable[..., Sequence[Any]] = program.module(check_guards=False)
    placeholders = program.graph.find_nodes(op="placeholder")
    given = program.graph_signature.user_inputs
    by_name = {node.name: node.meta.get("val") for node in placeholders}
    enter = entrance_of([by_name.get(name) for name in given])

    def run(values: Sequence[Any]) -> Sequence[Any]:
        return module(*enter(values))

    return run


def _example(fake: Any) -> Any:
    """Return a value like one of the capture's."""
    if not isinstance(fake, torch.Tensor):
        return _size(fake)
    sizes, strides = map(_size, fake.shape), map(_size, fake.stride())
    return torch.empty_strided(
        tuple(sizes), tuple(strides), dtype=fake.dtype, device=fake.device
    ).zero_()


def _size(value: Any) -> Any:
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return value
    env = value.node.shape_env
    known = env.backed_var_to_val
    told = {symbol: known.get(symbol, _UNTOLD) for symbol in free_symbols(value)}
    number = sympy.sympify(value.node.expr).xreplace(told)
    return bool(number) if isinstance(value, torch.SymBool) else int(number)


def _shape(fake: Any) -> Any:
    """Say which sizes vary."""
    if not isinstance(fake, torch.Tensor):
        return Dim.DYNAMIC if isinstance(fake, torch.SymInt) else None
    axes = {
        axis: Dim.DYNAMIC for axis, size in enumerate(fake.shape) if isinstance(size, torch.SymInt)
    }
    return axes or None
