"""A model from a ``.pt2`` file, with its example inputs and the ranges of its dynamic axes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from singlecard.errors import ModelError
from singlecard.report.model import Model


def load_exported(path: Path) -> Model:
    """Return the model that ``torch.export.save`` wrote to a file.

    Raises:
        ModelError: the file is missing or damaged, or holds no example inputs.
    """
    if not path.is_file():
        raise ModelError(
            f"there is no file {path} (looked for {path.absolute()}): write one with "
            "torch.export.save(torch.export.export(module, args), path)"
        )
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"{path} is damaged, or no .pt2 file at all (it is no whole zip archive): write it "
            "again with torch.export.save"
        )
    try:
        program = torch.export.load(path)
        module = program.module()
    except Exception as error:  # what is inside fails in many ways, and torch's text names none
        raise ModelError(
            f"{path} holds no program that PyTorch {torch.__version__} can load: it is damaged, or "
            "written by another version or not by torch.export.save. Write it again; --debug "
            "shows what torch says"
        ) from error
    if program.example_inputs is None:
        raise ModelError(
            f"{path} holds no example inputs, which capture needs: write it again with "
            "torch.export.save, which keeps those of torch.export.export"
        )
    args, kwargs = program.example_inputs
    return Model(str(path), module, tuple(args), dict(kwargs), _dynamic_shapes(program))


def _dynamic_shapes(program: ExportedProgram) -> dict[str, Any] | None:
    """Return the axes that vary, by argument: places of positional ones, names of the others."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    axes = [
        _axes(program, values.get(spec.arg.name))
        for spec in program.graph_signature.input_specs
        if spec.kind == InputKind.USER_INPUT
    ]
    if not any(axes):
        return None
    args, kwargs = pytree.tree_unflatten(axes, program.call_spec.in_spec)
    return {**{str(place): item for place, item in enumerate(args)}, **kwargs}


def _axes(program: ExportedProgram, value: Any) -> dict[int, tuple[int | None, int | None]] | None:
    if not isinstance(value, torch.Tensor):
        return None
    ranges: dict[int, tuple[int | None, int | None]] = {}
    for axis, extent in enumerate(value.shape):
        if isinstance(extent, torch.SymInt):
            span = program.range_constraints.get(extent.node.expr)
            # An extent such as 2 * s has no range of its own: Dynamo finds that of s again.
            ranges[axis] = (None, None) if span is None else (_end(span.lower), _end(span.upper))
    return ranges or None


def _end(bound: Any) -> int | None:
    """Return one end of a range of sympy numbers; None where it is open."""
    return int(bound) if bound.is_Integer else None
