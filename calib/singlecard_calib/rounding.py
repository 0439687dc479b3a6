"""GPTQ for a search: rounded weights beside the model's own, written to it at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from singlecard.errors import OptionError
from singlecard.precision.points import Point
from singlecard.precision.table import CalibrationTable
from singlecard_calib.feeding import Call
from singlecard_calib.gptq import LARGEST, gptq
from singlecard_calib.watching import watch

#: The precision whose weights are rounded.
ROUNDED = "int8-weight"

#: Share of a Hessian's mean diagonal that is added to its diagonal.
_DAMPING = 0.01


def check_weights(model: Callable[..., Any]) -> None:
    """Raise where a model's weights cannot be written to.

    Raises:
        OptionError: it is no nn.Module.
    """
    if not isinstance(model, torch.nn.Module):
        raise OptionError(
            f"round_weights=True writes to a model's weights, and {type(model).__name__} is no "
            "nn.Module"
        )


def rounded_weights(
    model: Callable[..., Any],
    data: Sequence[Call],
    points: Mapping[str, Point],
    table: CalibrationTable,
) -> dict[tuple[str, str], torch.Tensor]:
    """Return rounded weights of linear layers whose weight is a parameter of the model.

    Rounding follows the second moments of each layer's inputs over all data, with the model's own
    weights before it.

    Returns:
        FP32 weights, by point and precision, not multiplied by any divisor.
    """
    assert isinstance(model, torch.nn.Module)
    own = {parameter.data_ptr(): parameter for parameter in model.parameters()}
    wanted = {
        name: point
        for name, point in points.items()
        if point.op == "linear"
        and point.weight is not None
        and point.weight.data_ptr() in own
        and point.weight.dtype == torch.float32
        and point.weight.is_contiguous()
    }
    moments = watch(model, data, {point.operands[0][0] for point in wanted.values()})
    result = {}
    for name, point in wanted.items():
        tensor = point.operands[0][0]
        if tensor not in moments:
            continue
        assert point.weight is not None
        scale = table.tensors.get(tensor)
        divisor = torch.ones(point.weight.shape[1])
        if scale is not None and scale.weights_divisor:
            divisor = torch.tensor(scale.weights_divisor)
        hessian = 2 * moments[tensor] / divisor[:, None] / divisor
        weight = point.weight.detach().cpu() * divisor
        rounded = gptq(weight, hessian, LARGEST[8], weight.shape[1], _DAMPING)
        result[name, ROUNDED] = rounded / divisor
    return result


def write_weights(
    points: Mapping[str, Point],
    rounded: Mapping[tuple[str, str], torch.Tensor],
    assignment: Mapping[str, str],
) -> dict[str, Point]:
    """Write rounded weights to the model, and return the points whose weights changed."""
    written = {}
    for name, precision in assignment.items():
        values = rounded.get((name, precision))
        weight = points[name].weight
        if values is None or weight is None:
            continue
        with torch.no_grad():
            weight.copy_(values.to(weight.device))
        written[name] = points[name]
    return written
