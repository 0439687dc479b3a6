"""What surrounds a graph of Dynamo's: the model that it is of, and whether it is all of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._dynamo import convert_frame, eval_frame
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.nn.modules import module as module_of_torch

#: A function of PyTorch's that calls a module with all that it was given.
_TORCH = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Scope:
    """The surroundings of a graph. Holds names alone, and keeps no model alive.

    Attributes:
        first: whether the graph begins where the compiled model does. What Dynamo compiles behind
            a graph break begins inside of it, and modules have other paths there.
        whole: whether the graph is all that was compiled: it is the first, and no break ends it.
        model: the model's name, for messages.
        places: parameters in the order of their places.
        named: whether the graph's inputs have the names of parameters. Dynamo sees some modules
            called with ``*args``: what is given by position has its place for a name there.
        modules: paths of all modules of the compiled model; empty where they are not known.
    """

    first: bool = False
    whole: bool = False
    model: str = "the model"
    modules: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    named: bool = True

    def path_of(self, name: str) -> str:
        """Return the path that an input has in the graph, named by its parameter or its place."""
        first, dot, rest = name.partition(".")
        if self.named and first.isdecimal() and int(first) < len(self.places):
            return f"{self.places[int(first)]}{dot}{rest}"
        if not self.named and first in self.places:
            return f"{self.places.index(first)}{dot}{rest}"
        return name


def scope_of_graph() -> Scope:
    """Return the surroundings of the graph that Dynamo is handing over.

    Dynamo of 2.13 knows them, and has no interface for them: where it has changed, nothing is
    known, and nothing that depends on it is said.
    """
    try:
        output = InstructionTranslator.current_tx().output
        first = _is_called_by_the_compiler()
        reason = output.compile_subgraph_reason
        code = output.root_tx.f_code
        values = [*output.local_scope.values()]
        values += [output.root_tx.f_globals.get(name) for name in code.co_names]
    except Exception:
        return Scope()
    roots = [value for value in values if isinstance(value, nn.Module)]
    if not first:  # what Dynamo found there is a part of what was compiled
        roots = _compiled_modules()
    whole = first and reason is not None and not reason.graph_break
    name = type(roots[0]).__name__ if roots else "the model"
    args = output.local_scope.get("args")
    if not first:
        return Scope(model=name, modules=paths_of(roots))
    if isinstance(args, tuple) and code.co_filename.startswith(_TORCH):
        places = _names_of(roots[0])[: len(args)] if roots else ()
        return Scope(first, whole, name, paths_of(roots), places, named=False)
    parameters = code.co_varnames[: code.co_argcount]
    bound = bool(parameters) and isinstance(output.local_scope.get(parameters[0]), nn.Module)
    return Scope(first, whole, name, paths_of(roots), parameters[bound:])


def _names_of(model: nn.Module) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return ()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(item.name for item in parameters if item.kind in kinds)


def _compiled_modules() -> list[nn.Module]:
    """Return the modules of what torch.compile was given, whose wrapper is among the callers."""
    frame = sys._getframe()
    found: list[nn.Module] = []
    while frame is not None:
        if frame.f_code.co_filename == eval_frame.__file__ and "fn" in frame.f_locals:
            function = frame.f_locals["fn"]
            cells = getattr(function, "__closure__", None) or ()
            held = [getattr(function, "__self__", None), *(cell.cell_contents for cell in cells)]
            found = [value for value in held if isinstance(value, nn.Module)] or found
        frame = frame.f_back  # type: ignore[assignment]
    return found


def paths_of(roots: Iterable[nn.Module]) -> tuple[str, ...]:
    """Return the paths of all modules below some, as `module_path` has them."""
    paths = (
        path.removeprefix("_orig_mod.").removeprefix("module.")
        for root in roots
        for path, _ in root.named_modules(remove_duplicate=False)
    )
    return tuple(dict.fromkeys(path for path in paths if path))


def _is_called_by_the_compiler() -> bool:
    """Tell whether torch.compile's own wrapper calls the frame, perhaps through nn.Module's."""
    frame = sys._getframe()
    beyond = None
    while frame is not None:
        if frame.f_code.co_filename == convert_frame.__file__:
            beyond = frame.f_back
        frame = frame.f_back  # type: ignore[assignment]
    while beyond is not None and beyond.f_code.co_filename == module_of_torch.__file__:
        beyond = beyond.f_back
    return beyond is not None and beyond.f_code.co_filename == eval_frame.__file__
