"""Example arguments brought to the sizes that engines are wanted for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch.utils import _pytree as pytree

from singlecard.axes import Axes, Range, nearest, text_from_axes
from singlecard.errors import ModelError, OptionError, SinglecardError
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.report.arguments import Arguments, arguments_of, copied
from singlecard.report.model import Model
from singlecard.report.origin import first_line, place_of
from singlecard.report.ranges import read_axes
from singlecard.report.verify import Compiled, compile_model


def compile_fitted(
    model: Model, shapes: Axes, options: Options, progress: Progress | None
) -> Compiled:
    """Capture, lower and build a model with its inputs in the given shapes.

    Raises:
        OptionError: a shape fits no input, or PyTorch refuses a range.
        ModelError: the model does not take these sizes, or raises whatever it is given.
    """
    model = fit(model, shapes)
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
    except Exception:
        check_runs(model, shapes)
        raise


def fit(model: Model, shapes: Axes) -> Model:
    """Return a model whose examples have the given sizes, and whose axes have the given ranges.

    Examples grow by repeating what they hold, so that token numbers and masks stay what they are.

    Raises:
        OptionError: a shape names no tensor of the examples, or an axis that it lacks.
    """
    if not shapes:
        return model
    call = arguments_of(model.module, model.args, model.kwargs)
    fitted: dict[int, torch.Tensor] = {}
    ranges: dict[str, Mapping[int, Range]] = {}
    exported = dict(read_axes(model.dynamic_shapes, call))
    for name, axes in shapes.items():
        path = call.path_of(name)
        tensor = call.leaves.get(path)
        if not isinstance(tensor, torch.Tensor):
            raise _no_input(model, name, call)
        if max(axes) >= tensor.ndim:
            raise OptionError(
                f"the shapes of {name!r} have {max(axes) + 1} axes, and the example of "
                f"{model.name} has {tensor.ndim}: {list(tensor.shape)}"
            )
        fitted[id(tensor)] = _resized(tensor, name, axes)
        # The ranges of a .pt2 file, which these take the place of.
        _check_range(model, name, axes, exported.pop(path, {}))
        ranges[path] = dict(axes)
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda tensor: fitted.get(id(tensor), tensor), (model.args, model.kwargs)
    )
    return dataclasses.replace(
        model, args=args, kwargs=kwargs, dynamic_shapes={**exported, **ranges}
    )


def _check_range(
    model: Model, name: str, axes: Mapping[int, Range], exported: Mapping[int, Range]
) -> None:
    for axis, item in axes.items():
        largest = exported[axis].max if axis in exported else None
        if item.max is not None and largest is not None and item.max > largest:
            raise OptionError(
                f"the shapes of {name!r}, axis {axis}: got {item.max}, and {model.name} was "
                f"exported for at most {largest}: ask for less, or export it again"
            )


def _no_input(model: Model, given: str, call: Arguments) -> OptionError:
    names = [
        call.shown(path) for path, value in call.leaves.items() if isinstance(value, torch.Tensor)
    ]
    return OptionError(
        f"the shapes name {given!r}, which no example argument of {model.name} is: "
        f"{nearest(given, names)}There are {', '.join(names) or 'none'}"
    )


def _resized(tensor: torch.Tensor, name: str, axes: Mapping[int, Range]) -> torch.Tensor:
    """Return an example with the opt sizes."""
    result = tensor.detach().clone(memory_format=torch.preserve_format)
    for axis, item in axes.items():
        wanted, now = _example_size(item), tensor.shape[axis]
        if wanted == now:
            continue
        if not now:
            raise OptionError(
                f"the example of {name!r} is empty, {list(tensor.shape)}: there is nothing "
                f"to fill axis {axis} with. Give an example with elements"
            )
        result = result.index_select(axis, torch.arange(wanted, device=tensor.device) % now)
    return result


def _example_size(item: Range) -> int:
    """Return the size to trace with: PyTorch traces a size of 1 as a constant."""
    assert item.opt is not None  # a text has all three
    return item.opt if item.fixed is not None else max(item.opt, 2)


def check_runs(model: Model, shapes: Axes) -> None:
    """Run a model in eager PyTorch; compiled, its own errors look like Dynamo's.

    Raises:
        ModelError: it raises, whatever compiles it.
    """
    given = "; ".join(f"{name}={text_from_axes(axes)}" for name, axes in shapes.items())
    try:
        with torch.no_grad():
            model.module(*copied(model.args), **copied(model.kwargs))
    except Exception as error:
        cure = "too: correct the model or its example arguments"
        if shapes:
            cure = (
                f"with the shapes {given}: give every input that goes with these a shape too, or "
                "sizes that the model takes"
            )
        raise ModelError(
            f"the model {model.name} raised {type(error).__name__} at {place_of(error)}: "
            f"{first_line(error)}. It does so in plain PyTorch {cure}"
        ) from error
