"""Layers that make a tensor from nothing but their own settings."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.table import Call, evaluates
from singlecard.reference.types import TORCH_DTYPES, tensor_from_weights


@evaluates("CONSTANT", widens=False)
def constant(call: Call) -> Tensor:
    values = tensor_from_weights(call.layer.weights["weights"], call.device)
    return values.reshape(call.required_dims("shape"))


@evaluates("FILL", widens=False)
def fill(call: Call) -> Tensor:
    """``alpha + sum(index[axis] * beta[axis])``, with both ends of type and shape from inputs."""
    if call.text("operation") != "LINSPACE":
        raise EvaluationError(
            f"{call.text('operation')} has no defined values: make the random numbers outside the "
            "network and give them as an input"
        )
    shape = call.integers(0) or call.dims("shape") or ()
    # Whole numbers are exact in the wide types, and a float sequence is rounded once at the end.
    wide = torch.float64 if TORCH_DTYPES[call.output.dtype].is_floating_point else torch.int64
    start = _end(call, 1, "alpha").to(wide)
    steps = _end(call, 2, "beta").to(wide).reshape(-1).expand(len(shape))
    result = start.reshape(()).expand(shape)
    for axis, length in enumerate(shape):
        along = torch.arange(length, dtype=wide, device=call.device) * steps[axis]
        result = result + along.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return result


def _end(call: Call, index: int, name: str) -> Tensor:
    given = call.optional(index)
    return torch.tensor(call.number(name), device=call.device) if given is None else given
