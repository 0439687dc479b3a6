"""Example arguments brought to the sizes that engines are wanted for."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard.capture.sources import input_path
from singlecard.errors import ModelError, OptionError, SinglecardError
from singlecard.network.building import Progress
from singlecard.offline.shapes import Axis, Shape
from singlecard.options import Options, Span
from singlecard.report.measure import copied
from singlecard.report.model import Model
from singlecard.report.origin import first_line, place_of
from singlecard.report.verify import Compiled, compile_model

_SPECIALIZED = re.compile(r"You marked (L\[.+?)\.size\(\)\[(\d+)\] as dynamic but (.+?)\. ")


def compile_fitted(
    model: Model, shapes: Sequence[Shape], options: Options, progress: Progress | None
) -> Compiled:
    """Capture, lower and build a model with its inputs in the given shapes.

    Raises:
        OptionError: a shape fits no input.
        ModelError: the model does not take these sizes, or raises whatever it is given.
    """
    if shapes:
        model, spans = fit(model, shapes)
        options = dataclasses.replace(options, profiles=spans)
    try:
        return compile_model(
            model.module,
            model.args,
            model.kwargs,
            model.dynamic_shapes,
            options,
            "eager",
            progress,
        )
    except SinglecardError:
        raise
    except Exception as error:
        _blame_model(model, shapes, error)
        raise


def fit(model: Model, shapes: Sequence[Shape]) -> tuple[Model, tuple[Span, ...]]:
    """Return a model whose examples have the given sizes, and the ranges of axes that vary.

    Examples grow by repeating what they hold, so that token numbers and masks stay what they are.

    Raises:
        OptionError: a shape names no tensor of the examples, or an axis that it lacks.
    """
    inputs = dict(_inputs(model))
    places = _places(model)
    fitted: dict[int, torch.Tensor] = {}
    spans: list[Span] = []
    dynamic = dict(model.dynamic_shapes or {})
    for shape in shapes:
        first, dot, rest = shape.input.partition(".")
        name = shape.input
        if first not in model.kwargs and first in places:
            name = f"{places[first]}{dot}{rest}"
        if name not in inputs:
            raise _no_input(model, shape.input, inputs, places)
        tensor = inputs[name]
        if len(shape.axes) > tensor.ndim:
            raise OptionError(
                f"the shapes of {shape.input!r} have {len(shape.axes)} axes, and the example of "
                f"{model.name} has {tensor.ndim}: {list(tensor.shape)}"
            )
        fitted[id(tensor)] = _resized(tensor, shape)
        spans += [
            Span(name, axis, *size)
            for axis, size in enumerate(shape.axes)
            if isinstance(size, tuple)
        ]
        # The ranges of a .pt2 file, which these take the place of.
        _check_range(model, shape, dynamic.pop(name, None) or {})
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda tensor: fitted.get(id(tensor), tensor), (model.args, model.kwargs)
    )
    left = {str(place): dynamic.get(str(place)) for place in range(len(args))} | {
        name: axes for name, axes in dynamic.items() if name in kwargs
    }
    changed = dataclasses.replace(
        model, args=args, kwargs=kwargs, dynamic_shapes=left if any(left.values()) else None
    )
    return changed, tuple(spans)


def _check_range(model: Model, shape: Shape, exported: Mapping[int, Any]) -> None:
    for axis, size in enumerate(shape.axes):
        largest = (exported.get(axis) or (None, None))[1]
        wanted = size[2] if isinstance(size, tuple) else size
        if wanted is not None and largest is not None and wanted > largest:
            raise OptionError(
                f"the shapes of {shape.input!r}, axis {axis}: got {wanted}, and {model.name} was "
                f"exported for at most {largest}: ask for less, or export it again"
            )


def _inputs(model: Model) -> Iterator[tuple[str, torch.Tensor]]:
    """Give every tensor of the examples with its name, as option ``profiles`` has it."""
    for place, value in enumerate(model.args):
        yield from _tensors(str(place), value)
    for name, value in model.kwargs.items():
        yield from _tensors(name, value)


def _tensors(path: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(f"{path}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _tensors(f"{path}.{index}", item)


def _places(model: Model) -> dict[str, int]:
    """Return the place of each parameter that the examples give by position."""
    forward = getattr(model.module, "forward", model.module)
    try:
        names = [
            name
            for name, parameter in inspect.signature(forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        return {}
    return {name: place for place, name in enumerate(names[: len(model.args)])}


def _no_input(
    model: Model, given: str, inputs: Mapping[str, torch.Tensor], places: Mapping[str, int]
) -> OptionError:
    parameters = {str(place): name for name, place in places.items()}
    names = []
    for name in inputs:
        first, dot, rest = name.partition(".")
        names.append(f"{parameters.get(first, first)}{dot}{rest}")
    close = difflib.get_close_matches(given, names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return OptionError(
        f"the shapes name {given!r}, which no example argument of {model.name} is: {hint}There "
        f"are {', '.join(names) or 'none'}"
    )


def _resized(tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Return an example with the usual sizes, its axes with a range marked as dynamic."""
    result = tensor.detach().clone(memory_format=torch.preserve_format)
    for axis, size in enumerate(shape.axes):
        wanted = _example_size(size, tensor.shape[axis])
        if wanted == tensor.shape[axis]:
            continue
        if not tensor.shape[axis]:
            raise OptionError(
                f"the example of {shape.input!r} is empty, {list(tensor.shape)}: there is nothing "
                f"to fill axis {axis} with. Give an example with elements"
            )
        index = torch.arange(wanted, device=tensor.device) % tensor.shape[axis]
        result = result.index_select(axis, index)
    for axis, size in enumerate(shape.axes):
        if isinstance(size, tuple):
            torch._dynamo.mark_dynamic(result, axis)
    return result


def _example_size(size: Axis, now: int) -> int:
    """Return the size to trace with: PyTorch traces a size of 1 as a constant."""
    if size is None:
        return now
    return size if isinstance(size, int) else max(size[1], 2)


def _blame_model(model: Model, shapes: Sequence[Shape], error: Exception) -> None:
    """Raise what is wrong with the model or with the shapes, where they cause an error."""
    given = "; ".join(str(shape) for shape in shapes)
    constant = _SPECIALIZED.search(str(error))
    if constant is not None:
        name, axis, why = input_path(constant[1]), constant[2], constant[3]
        parameters = {str(place): parameter for parameter, place in _places(model).items()}
        name = parameters.get(name, name)
        raise ModelError(
            f"{model.name} does not let axis {axis} of input {name} vary ({why}): give inputs that "
            f"are as long as each other the same range, or this axis one size. The shapes are "
            f"{given}"
        ) from error
    try:
        with torch.no_grad():
            model.module(*copied(model.args), **copied(model.kwargs))
    except Exception as eager:
        cure = "too: correct the model or its example arguments"
        if shapes:
            cure = (
                f"with the shapes {given}: give every input that goes with these a shape too, or "
                "sizes that the model takes"
            )
        raise ModelError(
            f"the model {model.name} raised {type(eager).__name__} at {place_of(eager)}: "
            f"{first_line(eager)}. It does so in plain PyTorch {cure}"
        ) from eager
