"""Decompositions of our own, where PyTorch's leave in the graph what no engine can hold."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import _prims
from torch._decomp import decomposition_table, get_decompositions

aten = torch.ops.aten


def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> Any:
    """Leave out empty tensors, such as a key-value cache that has seen no token yet."""
    filled = [x for x in tensors if not _is_empty(x)]
    if not filled or len(filled) == len(tensors):
        return NotImplemented
    kind = reduce(torch.promote_types, (x.dtype for x in tensors))
    alike = [x.to(kind) for x in filled]
    return aten.cat.default(alike, dim) if len(alike) > 1 else alike[0].clone()


def _is_empty(x: torch.Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)


def _lstm_layer(
    input: torch.Tensor,
    input_weight: torch.Tensor,
    hidden_weight: torch.Tensor,
    input_bias: torch.Tensor,
    hidden_bias: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    reverse: bool,
    *rest: Any,
) -> Any:
    """Take oneDNN's LSTM apart, step by step, as PyTorch takes the LSTM of other devices apart.

    A length that varies has no number of steps: such a layer stays whole, in PyTorch.
    """
    if not isinstance(input.shape[0], int):
        return NotImplemented
    mode, _, layers, has_biases, bidirectional, batch_first, train = rest[1:]
    if mode != _LSTM or layers != 1 or bidirectional or batch_first or train:
        return NotImplemented
    biases = (input_bias, hidden_bias) if has_biases else (None, None)
    steps = F.linear(input, input_weight, biases[0])
    state, held = hidden, cell
    given: list[torch.Tensor] = []
    for step in reversed(range(steps.shape[0])) if reverse else range(steps.shape[0]):
        gates = F.linear(state, hidden_weight, biases[1]) + steps[step : step + 1]
        enter, forget, new, leave = gates.chunk(4, 2)
        held = forget.sigmoid() * held + enter.sigmoid() * new.tanh()
        state = leave.sigmoid() * held.tanh()
        given.append(state)
    output = torch.cat(given[::-1] if reverse else given, 0)
    return output, state, held, input.new_empty(0, dtype=torch.uint8)


#: The kind of a recurrent layer in oneDNN's words.
_LSTM = 2


def _empty(size: Sequence[int], **named: Any) -> Any:
    """Memory that nobody wrote holds any values: zeros are as good, and the same in every call."""
    if named.pop("memory_format", None) not in (None, torch.contiguous_format):
        return NotImplemented
    # Of an integer, PyTorch would make integers where no type is given.
    return aten.full.default(size, 0.0, **named)


def _empty_permuted(size: Sequence[int], physical_layout: Sequence[int], **named: Any) -> Any:
    """As `_empty`, with the axes from the outermost in memory to the innermost."""
    filled = _empty([size[axis] for axis in physical_layout], **named)
    places = sorted(range(len(size)), key=physical_layout.__getitem__)
    return aten.permute.default(filled, places)


def _empty_strided(size: Sequence[int], stride: Sequence[int], **named: Any) -> Any:
    """As `_empty`, where the strides are known, and those of axes in some order."""
    if not all(isinstance(item, int) for item in (*size, *stride)):
        return NotImplemented
    order = sorted(range(len(size)), key=lambda axis: (-stride[axis], axis))
    filled = _empty_permuted(size, order, **named)
    return filled if tuple(filled.stride()) == tuple(stride) else NotImplemented


def _native_dropout(input: torch.Tensor, p: float, train: bool | None) -> Any:
    """Dropout that drops nothing; another one draws random numbers."""
    if train is not False and p != 0:
        return NotImplemented
    return input.clone(), torch.ones_like(input, dtype=torch.bool)


def _take(self: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """PyTorch's own turns an index without dimensions into a number, which a graph cannot have."""
    return aten.index.Tensor(self.reshape(-1), [index])  # type: ignore[no-any-return]


def _affine_grid(theta: torch.Tensor, size: Sequence[Any], align_corners: bool) -> torch.Tensor:
    """Like PyTorch's, which makes a tensor of a number for an axis of one element.

    That leaves a write in the graph, which then stays in PyTorch as a whole. The place of the only
    element is that of the middle one of three.
    """
    single = [axis for axis, extent in enumerate(size) if axis > 1 and _is_one(extent)]
    wide = [3 if axis in single else extent for axis, extent in enumerate(size)]
    grid = decomposition_table[aten.affine_grid_generator.default](theta, wide, align_corners)
    for axis in single:
        grid = grid.narrow(axis - 1, 1, 1)
    return grid.contiguous() if single else grid  # type: ignore[no-any-return]


def _is_one(extent: Any) -> bool:
    return isinstance(extent, int) and extent == 1


def _copy_of_a_number(self: Any, **named: Any) -> Any:
    """Make a tensor of a number at once: PyTorch's `vmap` copies one as if it were a tensor."""
    if isinstance(self, torch.Tensor) or named.keys() - {"dtype", "device"}:
        return NotImplemented
    return aten.scalar_tensor.default(self, **named)


def _baddbmm(self: torch.Tensor, *rest: Any, **named: Any) -> Any:
    """Like PyTorch's, whose sum would lie as its first operand does; the kernel's is contiguous."""
    return decomposition_table[aten.baddbmm.default](self.contiguous(), *rest, **named)


def _copy_strided(a: torch.Tensor, stride: Sequence[Any]) -> torch.Tensor:
    """A copy with these strides. PyTorch's own writes into new memory, which no graph may hold."""
    memory = torch.empty_strided(a.shape, stride, dtype=a.dtype, device=a.device)
    return aten.copy.default(memory, a)  # type: ignore[no-any-return]


def _linspace(start: Any, end: Any, steps: int, **named: Any) -> Any:
    """Like PyTorch's, but in float32 for floats up to that: its own computes ends in float64."""
    kind = named.get("dtype") or torch.get_default_dtype()
    if not steps or kind not in (torch.float32, torch.float16, torch.bfloat16):
        return decomposition_table[aten.linspace.Tensor_Tensor](start, end, steps, **named)
    first, last = (x.float() if isinstance(x, torch.Tensor) else float(x) for x in (start, end))
    device = named.get("device")
    if steps == 1:
        return torch.zeros(1, device=device).add(first).to(kind)
    places = torch.arange(steps, dtype=torch.float32, device=device)
    step = (last - first) / (steps - 1)
    from_end = last - step * ((steps - 1) - places)
    return torch.where(places < steps / 2, first + step * places, from_end).to(kind)


def _logspace(start: Any, end: Any, steps: int, base: float = 10.0, **named: Any) -> Any:
    """Like PyTorch's, but in float32 for floats up to that."""
    kind = named.get("dtype") or torch.get_default_dtype()
    if base < 0 or kind not in (torch.float32, torch.float16, torch.bfloat16):
        return decomposition_table[aten.logspace.Tensor_Tensor](start, end, steps, base, **named)
    exponents = _linspace(start, end, steps, **(named | {"dtype": torch.float32}))
    return torch.pow(base, exponents).to(kind)


#: Logits, in elements, that are made at once where PyTorch would make them in pieces.
_MOST_LOGITS = 2**26


def _linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None,
    weight: torch.Tensor | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    *rest: Any,
) -> Any:
    """The loss without its gradients, as the two steps that it is made of."""
    if any(item is True for item in rest[-3:]):
        return NotImplemented
    logits = input.shape[0] * linear_weight.shape[0]
    if not isinstance(logits, int) or logits > _MOST_LOGITS:
        return NotImplemented
    loss = F.cross_entropy(
        F.linear(input, linear_weight.to(input.dtype), linear_bias),
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )
    none = input.new_empty(0, 0)
    return loss, none, linear_weight.new_empty(0, 0, dtype=input.dtype), input.new_empty(0)


def _linear_cross_entropy_of_rows(*args: Any) -> Any:
    """The same for each row by itself."""
    found = _linear_cross_entropy(*args[:5], "none", args[5], 0.0)
    return found if found is NotImplemented else found[0]


def _cross_entropies() -> dict[Any, Callable[..., Any]]:
    """Return the decompositions of losses that not every PyTorch has."""
    try:
        importlib.import_module("torch.nn.modules.linear_cross_entropy")
        space = torch.ops.torch_nn
        rows = space._linear_cross_entropy_batch_chunked_no_reduction.default
        return {
            space._linear_cross_entropy_batch_chunked.default: _linear_cross_entropy,
            rows: _linear_cross_entropy_of_rows,
        }
    except (ImportError, AttributeError):
        return {}


def _primitives() -> dict[Any, Callable[..., Any]]:
    """Return what PyTorch's primitives are in ATen: some of its decompositions leave them."""
    found = [getattr(_prims, name, None) for name in _prims.__all__]
    return {
        prim: prim.impl_aten  # type: ignore[attr-defined]
        for prim in found
        if isinstance(prim, torch._ops.OpOverload)
        and not prim._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in prim.tags
        and prim is not torch.ops.prims.convert_element_type.default
    }


_LINSPACE = ("Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor")


def own_decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what each op is decomposed into; NotImplemented, and it stays whole."""
    return {
        **_primitives(),
        **get_decompositions([aten._batch_norm_with_update_functional.default]),
        **{getattr(aten.linspace, overload): _linspace for overload in _LINSPACE},
        **{getattr(aten.logspace, overload): _logspace for overload in _LINSPACE},
        **_cross_entropies(),
        aten._to_copy.default: _copy_of_a_number,
        aten.affine_grid_generator.default: _affine_grid,
        aten.baddbmm.default: _baddbmm,
        aten.cat.default: _cat,
        aten.mkldnn_rnn_layer.default: _lstm_layer,
        aten.empty.memory_format: _empty,
        aten.empty_permuted.default: _empty_permuted,
        aten.empty_strided.default: _empty_strided,
        aten.native_dropout.default: _native_dropout,
        aten.take.default: _take,
        torch.ops.prims.copy_strided.default: _copy_strided,
    }
