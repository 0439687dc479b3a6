"""Element-by-element operations of the network facade, with PyTorch's promotion of types."""

from __future__ import annotations

from typing import Any, cast

import torch

from singlecard.network.core import Core, Number
from singlecard.network.flavour import trt
from singlecard.network.tensor import Tensor


def _stand_in(value: Tensor | Number) -> Any:
    """Return what promotes like ``value`` in ``torch.result_type``."""
    if isinstance(value, Tensor):
        return torch.empty((1,) * min(value.ndim, 1), dtype=value.dtype)
    return value


class Arithmetic(Core):
    """Unary, binary, comparison, selection."""

    def result_type(self, *values: Tensor | Number) -> torch.dtype:
        """Return the type that PyTorch computes with for these operands."""
        result = values[0].dtype if isinstance(values[0], Tensor) else None
        if len(values) == 1:
            return result or torch.result_type(cast(Any, values[0]), cast(Any, values[0]))
        dtype = torch.result_type(_stand_in(values[0]), _stand_in(values[1]))
        for value in values[2:]:
            dtype = torch.result_type(torch.empty(1, dtype=dtype), _stand_in(value))
        return dtype

    def operand(self, value: Tensor | Number, dtype: torch.dtype, ndim: int = 0) -> Tensor:
        """Return ``value`` as a tensor of ``dtype``."""
        if isinstance(value, Tensor):
            return self.cast(value, dtype)
        return self.scalar(value, dtype, ndim)

    def promote(
        self, *values: Tensor | Number, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, ...]:
        """Return the operands in one type: ``dtype``, or the one PyTorch would choose."""
        chosen = dtype or self.result_type(*values)
        return tuple(self.operand(value, chosen) for value in values)

    def align(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Give all tensors the highest rank among them, by leading extents of 1."""
        rank = max(tensor.ndim for tensor in tensors)
        return tuple(self.pad_rank(tensor, rank) for tensor in tensors)

    def pad_rank(self, x: Tensor, rank: int) -> Tensor:
        if x.ndim == rank:
            return x
        shape = (1,) * (rank - x.ndim) + x.shape
        if shape.count(-1) <= 1:
            layer = self.layer(self.definition.add_shuffle, x.handle)
            layer.reshape_dims = shape
            return self.output_of(layer)
        axes = self.axes(range(rank - x.ndim))
        return self.output_of(self.layer(self.definition.add_unsqueeze, x.handle, axes.handle))

    def axes(self, values: Any) -> Tensor:
        """Return a 1-D int32 constant: the form in which some layers take axes."""
        key = ("axes", tuple(values))
        if key not in self._constants:
            self._constants[key] = self.constant(torch.tensor(key[1], dtype=torch.int32))
        return self._constants[key]

    def binary(self, operation: str, a: Tensor, b: Tensor) -> Tensor:
        """Apply an ``ElementWiseOperation`` to operands of one type, broadcasting."""
        a, b = self.align(a, b)
        kind = getattr(trt.ElementWiseOperation, operation)
        return self.output_of(self.layer(self.definition.add_elementwise, a.handle, b.handle, kind))

    def unary(self, operation: str, x: Tensor) -> Tensor:
        """Apply a ``UnaryOperation``."""
        kind = getattr(trt.UnaryOperation, operation)
        return self.output_of(self.layer(self.definition.add_unary, x.handle, kind))

    def activation(
        self, kind: str, x: Tensor, alpha: float | None = None, beta: float | None = None
    ) -> Tensor:
        """Apply an ``ActivationType``, with its parameters where it has any."""
        layer = self.layer(
            self.definition.add_activation, x.handle, getattr(trt.ActivationType, kind)
        )
        if alpha is not None:
            layer.alpha = alpha
        if beta is not None:
            layer.beta = beta
        return self.output_of(layer)

    def where(self, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Choose from ``a`` where ``condition`` is true, from ``b`` elsewhere, broadcasting."""
        condition, a, b = self.align(condition, a, b)
        return self.output_of(
            self.layer(self.definition.add_select, condition.handle, a.handle, b.handle)
        )

    def logical_not(self, x: Tensor) -> Tensor:
        return self.unary("NOT", x)

    def negate(self, x: Tensor) -> Tensor:
        return self.unary("NEG", x)

    def sum(self, a: Tensor, b: Tensor) -> Tensor:
        return self.binary("SUM", a, b)

    def sub(self, a: Tensor, b: Tensor) -> Tensor:
        return self.binary("SUB", a, b)

    def prod(self, a: Tensor, b: Tensor) -> Tensor:
        return self.binary("PROD", a, b)

    def times(self, x: Tensor, factor: Number) -> Tensor:
        """Multiply by a number; a factor of 1 costs nothing."""
        return x if factor == 1 else self.prod(x, self.scalar(factor, x.dtype, x.ndim))
