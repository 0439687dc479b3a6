"""Calibration data, however a user has it: as calls of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from singlecard.errors import CalibrationError
from singlecard.report.arguments import copied
from singlecard.report.training import training_problem

#: Positional and keyword arguments of one call.
Call = tuple[tuple[Any, ...], dict[str, Any]]


def calls(data: Iterable[Any]) -> Iterator[Call]:
    """Yield positional and keyword arguments for each item of data.

    An item is a tensor, a tuple or list of arguments, a mapping of keyword arguments, or a pair of
    a tuple and a mapping.

    Raises:
        CalibrationError: ``data`` cannot be iterated over or gives nothing, or an item is none of
            these.

    Example:
        >>> import torch
        >>> [(len(args), list(kwargs)) for args, kwargs in calls([torch.ones(2), {"x": 1}])]
        [(1, []), (0, ['x'])]
    """
    if isinstance(data, (torch.Tensor, str, Mapping)) or not isinstance(data, Iterable):
        alone = isinstance(data, (torch.Tensor, Mapping))
        raise CalibrationError(
            "calibration data is an iterable of calls, such as a list or a DataLoader, got "
            f"{type(data).__name__}{': put it into a list, if it is one call' if alone else ''}"
        )
    place = -1
    for place, item in enumerate(data):
        yield _call_from(item, place)
    if place < 0:
        raise CalibrationError(
            "there is no calibration data: the iterable gave no item (a generator gives its items "
            "once only)"
        )


def _call_from(item: Any, place: int) -> Call:
    if isinstance(item, torch.Tensor):
        return (item,), {}
    if isinstance(item, Mapping):
        return (), dict(item)
    if not isinstance(item, (tuple, list)):
        raise CalibrationError(
            f"item {place} of the calibration data is {type(item).__name__}: give tensors, "
            "tuples of arguments, dictionaries of keyword arguments, or pairs of both"
        )
    # A DataLoader that collates pairs makes lists of their tuples.
    if len(item) == 2 and isinstance(item[0], (tuple, list)) and isinstance(item[1], Mapping):
        return tuple(item[0]), dict(item[1])
    return tuple(item), {}


def check_evaluation(model: Callable[..., Any]) -> None:
    """Refuse a model of which any part is in training mode.

    Raises:
        CalibrationError: it names the part, and the cure.
    """
    problem = training_problem(model, every_part=True)
    if problem:
        raise CalibrationError(problem)


def run(model: Callable[..., Any], call: Call) -> Any:
    """Call a model in eager PyTorch, also one that was compiled, without gradients.

    Tensors are copied, so that the same call can be run again by models that write into them.
    """
    args, kwargs = call
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        return model(*copied(args), **copied(kwargs))
