"""Shape operations of the network facade, for extents known now and for extents known later."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from singlecard.network.arithmetic import Arithmetic
from singlecard.network.flavour import trt
from singlecard.network.tensor import Size, Tensor

#: What changes nothing as the second operand.
_NEUTRAL = {"SUM": 0, "SUB": 0, "PROD": 1, "FLOOR_DIV": 1}

_KNOWN_SIZES: dict[str, Callable[[int, int], int]] = {
    "SUM": operator.add,
    "SUB": operator.sub,
    "PROD": operator.mul,
    "FLOOR_DIV": operator.floordiv,
    "MIN": min,
    "MAX": max,
}


def known(sizes: Sequence[Size]) -> tuple[int, ...] | None:
    """Return sizes as numbers, or None where one of them is only known when the engine runs."""
    numbers = tuple(size for size in sizes if isinstance(size, int))
    return numbers if len(numbers) == len(sizes) else None


class Shapes(Arithmetic):
    """Sizes, reshape, permute, expand, slice, concatenate."""

    def size(self, x: Tensor, axis: int) -> Size:
        """Return one extent: an int, or a one-element int64 tensor where it is dynamic."""
        axis %= x.ndim
        if x.shape[axis] >= 0:
            return x.shape[axis]
        key = ("size", id(x.handle), axis)
        if key not in self._constants:
            shape = self.output_of(self.layer(self.definition.add_shape, x.handle))
            layer = self.layer(self.definition.add_slice, shape.handle, (axis,), (1,), (1,))
            self._constants[key] = self.output_of(layer)
            self._constants[("sized", id(x.handle))] = x  # an id is only good while its owner lives
        return self._constants[key]

    def sizes(self, x: Tensor) -> list[Size]:
        return [self.size(x, axis) for axis in range(x.ndim)]

    def shape_tensor(self, sizes: Sequence[Size]) -> Tensor:
        """Return sizes as one 1-D int64 tensor."""
        numbers = known(sizes)
        if numbers is not None:
            return self.constant(torch.tensor(numbers, dtype=torch.int64))
        parts = [
            self.constant(torch.tensor([size])) if isinstance(size, int) else size for size in sizes
        ]
        return self.concat(parts, 0) if len(parts) > 1 else parts[0]

    def size_math(self, operation: str, a: Size, b: Size) -> Size:
        """Combine two sizes by an ``ElementWiseOperation``, such as FLOOR_DIV."""
        if isinstance(a, int) and isinstance(b, int):
            return _KNOWN_SIZES[operation](a, b)
        if b == _NEUTRAL.get(operation):
            return a
        if a == _NEUTRAL.get(operation) and operation in ("SUM", "PROD"):
            return b
        left, right = (
            self.constant(torch.tensor([size])) if isinstance(size, int) else size
            for size in (a, b)
        )
        return self.binary(operation, left, right)

    def iota(self, length: Size) -> Tensor:
        """Return the int64 numbers 0, 1, 2, ... up to a length that may be dynamic."""
        if isinstance(length, int):
            return self.constant(torch.arange(length))
        layer = self.layer(
            self.definition.add_fill, (1,), trt.FillOperation.LINSPACE, trt.DataType.INT64
        )
        layer.set_input(0, length.handle)
        layer.set_input(1, self.scalar(0, torch.int64).handle)
        layer.set_input(2, self.scalar(1, torch.int64, 1).handle)
        return self.output_of(layer)

    def reshape(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Return ``x`` with another shape; one size may be -1."""
        numbers = known(sizes)
        if x.is_static and numbers is not None and -1 in numbers and 0 not in numbers:
            others = -math.prod(numbers)  # worked out, so that two ways to write it are one network
            numbers = tuple(math.prod(x.shape) // others if n == -1 else n for n in numbers)
        if x.is_static and numbers == x.shape:
            return x
        layer = self.layer(self.definition.add_shuffle, x.handle)
        layer.zero_is_placeholder = False
        if numbers is not None:
            layer.reshape_dims = numbers
            return self.output_of(layer)
        unknown = [index for index, size in enumerate(sizes) if isinstance(size, Tensor)]
        if len(unknown) == 1 and -1 not in sizes and x.shape.count(-1) <= 1:
            layer.reshape_dims = tuple(-1 if isinstance(s, Tensor) else s for s in sizes)
        else:
            layer.set_input(1, self.shape_tensor(sizes).handle)
        return self.output_of(layer)

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        order = tuple(axis % x.ndim for axis in order)
        if order == tuple(range(x.ndim)):
            return x
        layer = self.layer(self.definition.add_shuffle, x.handle)
        layer.first_transpose = order
        return self.output_of(layer)

    def transpose(self, x: Tensor, a: int, b: int) -> Tensor:
        order = list(range(x.ndim))
        order[a], order[b] = order[b], order[a]
        return self.permute(x, order)

    def unsqueeze(self, x: Tensor, axis: int) -> Tensor:
        axis %= x.ndim + 1
        if x.shape.count(-1) <= 1:
            return self.reshape(x, x.shape[:axis] + (1,) + x.shape[axis:])
        return self.output_of(
            self.layer(self.definition.add_unsqueeze, x.handle, self.axes([axis]).handle)
        )

    def squeeze(self, x: Tensor, axes: Sequence[int]) -> Tensor:
        drop = {axis % x.ndim for axis in axes} if x.ndim else set()
        kept = [size for axis, size in enumerate(x.shape) if axis not in drop]
        if not drop:
            return x
        if kept.count(-1) <= 1:
            return self.reshape(x, kept)
        return self.output_of(
            self.layer(self.definition.add_squeeze, x.handle, self.axes(sorted(drop)).handle)
        )

    def expand(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """Repeat extents of 1 up to ``sizes``; -1 keeps an extent."""
        x = self.pad_rank(x, len(sizes))
        wanted = [
            self.size(x, axis) if isinstance(size, int) and size == -1 else size
            for axis, size in enumerate(sizes)
        ]
        if tuple(wanted) == x.shape:
            return x
        if all(
            extent == size or (extent == -1 and isinstance(size, Tensor))
            for extent, size in zip(x.shape, wanted, strict=True)
        ):
            return x  # every extent is there already, dynamic ones included
        strides = [0 if extent == 1 else 1 for extent in x.shape]
        return self.slice(x, [0] * x.ndim, wanted, strides)

    def slice(
        self,
        x: Tensor,
        starts: Sequence[Size],
        sizes: Sequence[Size],
        strides: Sequence[int],
        mode: str = "STRICT_BOUNDS",
        fill: Tensor | None = None,
    ) -> Tensor:
        """Take ``sizes`` elements from ``starts`` on; ``mode`` is a ``SampleMode``."""

        def static(values: Sequence[Size]) -> tuple[int, ...]:
            return tuple(0 if isinstance(value, Tensor) else value for value in values)

        layer: Any = self.layer(
            self.definition.add_slice, x.handle, static(starts), static(sizes), tuple(strides)
        )
        layer.mode = getattr(trt.SampleMode, mode)
        for index, values in ((1, starts), (2, sizes)):
            if any(isinstance(value, Tensor) for value in values):
                layer.set_input(index, self.shape_tensor(values).handle)
        if fill is not None:
            layer.set_input(4, fill.handle)
        return self.output_of(layer)

    def narrow(self, x: Tensor, axis: int, start: Size, length: Size, step: int = 1) -> Tensor:
        """Take ``length`` elements of one axis."""
        axis %= x.ndim
        if x.shape[axis] == length and step == 1 and start == 0:
            return x
        starts: list[Size] = [0] * x.ndim
        sizes = self.sizes(x)
        strides = [1] * x.ndim
        starts[axis], sizes[axis], strides[axis] = start, length, step
        return self.slice(x, starts, sizes, strides)

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        if len(tensors) == 1:
            return tensors[0]
        layer = self.layer(self.definition.add_concatenation, [tensor.handle for tensor in tensors])
        layer.axis = axis % tensors[0].ndim
        return self.output_of(layer)
