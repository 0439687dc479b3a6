"""The closed table of declared ops, collected from the converter files."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

import singlecard.lowering.ops as ops_package
from singlecard.capture.opaque import Opaque
from singlecard.capture.program import with_effects
from singlecard.capture.quantized import dequantize
from singlecard.lowering.call import Call, tensors_in
from singlecard.lowering.conditions import MOST_DIMENSIONS, first_refusal, type_name
from singlecard.lowering.declaration import Declaration
from singlecard.lowering.outputs import used_entries

#: Key of a node's metadata: why an op stays in PyTorch, where a pass knows more than a declaration.
REASON = "stays_because"

#: Types that networks of ours carry. int8 and fp8 live between quantize and dequantize only.
CARRIED = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.bool,
)


@functools.cache
def declarations() -> tuple[Declaration, ...]:
    """Return every declaration, in the order of the files and of the lines in them."""
    found: list[Declaration] = []
    for info in sorted(pkgutil.iter_modules(ops_package.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"{ops_package.__name__}.{info.name}")
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                found += getattr(value, "declarations", [])
    return tuple(found)


@functools.cache
def table() -> Mapping[Any, Declaration]:
    """Return the declaration of each op.

    Raises:
        ValueError: two files declare the same op.
    """
    result: dict[Any, Declaration] = {}
    for declaration in declarations():
        for target in declaration.targets:
            if target in result:
                raise ValueError(f"{target} is declared twice")
            result[target] = declaration
    return MappingProxyType(result)


def _general_refusal(call: Call, declaration: Declaration) -> str | None:
    """What holds for every op: types that TensorRT carries, dense tensors, something to compute."""
    results = call.result
    if isinstance(results, (list, tuple)):  # what nothing reads need not be computed
        results = [results[place] for place in used_entries(call) if place < len(results)]
    values = dict(call.values)
    if call.node.target is dequantize:
        del values["codes"]  # a constant, whose type its own conditions speak of
    taken, given = list(tensors_in(list(values.values()))), list(tensors_in(results))
    for value, more in zip(
        (*taken, *given),
        (*[declaration.takes] * len(taken), *[declaration.gives] * len(given)),
        strict=True,
    ):
        if value.ndim > MOST_DIMENSIONS:
            return (
                f"{call.op} meets a tensor of {value.ndim} dimensions, and TensorRT's have at most "
                f"{MOST_DIMENSIONS}"
            )
        if value.dtype not in CARRIED and value.dtype not in more:
            return f"{call.op} meets {type_name(value.dtype)}, which TensorRT does not compute with"
        if value.layout is not torch.strided:
            return f"{call.op} meets a {str(value.layout).removeprefix('torch.')} tensor"
        if _varies_without_elements(value):
            return f"{call.op} meets a tensor of shape {list(value.shape)}, which has no elements"
    return _device_refusal(call, results)


def _varies_without_elements(value: torch.Tensor) -> bool:
    """Tell whether a tensor is empty whatever its other extents are, one of which is not known.

    Where all are known, `singlecard.passes.known` makes a constant of it.
    """
    known = [size for size in value.shape if isinstance(size, int)]
    return 0 in known and len(known) < value.ndim


def _device_refusal(call: Call, results: object) -> str | None:
    """An engine works on one device; a single number may come from another."""
    tensors = (*tensors_in(list(call.values.values())), *tensors_in(results))
    devices = sorted({value.device.type for value in tensors if value.ndim})
    if len(devices) > 1 or "meta" in devices:
        return f"{call.op} meets tensors on {' and '.join(devices)}"
    return None


def refusal(node: fx.Node) -> str | None:
    """Return why an op stays in PyTorch, as one sentence, or None where it is lowered."""
    call = Call.of(node)
    if node.target is with_effects:
        return f"{call.op} runs for its effect (it raises or prints), which no engine can have"
    if isinstance(node.target, Opaque):
        return node.target.reason
    if REASON in node.meta:
        return str(node.meta[REASON])
    declaration = table().get(node.target)
    if declaration is None:
        return f"{call.op} has no TensorRT lowering"
    return _general_refusal(call, declaration) or first_refusal(declaration.conditions, call)
