"""Layers that change shape or type and leave the elements as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.reference.table import Call, evaluates


@evaluates("SHAPE", widens=False)
def shape(call: Call) -> Tensor:
    return torch.tensor(call[0].shape, dtype=torch.int64, device=call.device)


#: The builder lets only quantize and dequantize layers convert to and from these types.
_QUANTIZED = frozenset({"fp8", "int4", "fp4", "e8m0"})


@evaluates("IDENTITY", widens=False)
@evaluates("CAST", widens=False)
def cast(call: Call) -> Tensor:
    """The executor rounds every output to its declared type, which is all that a cast does."""
    given = call.layer.inputs[0]
    types = {call.output.dtype, call.output.dtype if given is None else given.dtype}
    if len(types) == 2 and types & _QUANTIZED:
        raise EvaluationError(
            f"TensorRT does not cast between {' and '.join(sorted(types))}: use a quantize or "
            "dequantize layer"
        )
    return call[0]


@evaluates("CONCATENATION", widens=False)
def concatenation(call: Call) -> Tensor:
    return torch.cat([call[index] for index in range(len(call.inputs))], call.integer("axis"))


@evaluates("SHUFFLE", widens=False)
def shuffle(call: Call) -> Tensor:
    x = call[0].permute(call.required_dims("first_transpose"))
    dims = call.integers(1)
    if dims is None:
        dims = call.dims("reshape_dims")
    if dims is not None:
        if call.integer("zero_is_placeholder"):
            dims = tuple(x.shape[axis] if size == 0 else size for axis, size in enumerate(dims))
        x = x.reshape(dims)
    return x.permute(call.required_dims("second_transpose"))


@evaluates("SQUEEZE", widens=False)
def squeeze(call: Call) -> Tensor:
    axes = call.integers(1)
    if axes is not None:
        return call[0].squeeze(axes)
    # Without axes, only dimensions that are 1 in the network itself are removed.
    declared = call.layer.inputs[0]
    sizes = () if declared is None else declared.shape
    return call[0].squeeze(tuple(axis for axis, size in enumerate(sizes) if size == 1))


@evaluates("UNSQUEEZE", widens=False)
def unsqueeze(call: Call) -> Tensor:
    x, axes = call[0], call.integers(1) or ()
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x
