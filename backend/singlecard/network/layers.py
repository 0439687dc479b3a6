"""The heavy layers of the network facade: products, convolutions, pooling, norms, attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from singlecard.network import versions
from singlecard.network.flavour import trt
from singlecard.network.shapes import Shapes
from singlecard.network.tensor import Size, Tensor

#: The layer of a convolution or of its transpose.
Kernel = TypeVar("Kernel", bound="trt.IConvolutionLayer | trt.IDeconvolutionLayer")


def _mask(axes: Iterable[int]) -> int:
    return sum(1 << axis for axis in set(axes))


class Layers(Shapes):
    """One method a TensorRT layer, in tensors."""

    def matmul(
        self, a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False
    ) -> Tensor:
        """Matrix product over the last two axes, leading axes broadcast; both of rank 2 or more."""
        a, b = self.align(a, b)
        operation = trt.MatrixOperation
        layer = self.layer(
            self.definition.add_matrix_multiply,
            a.handle,
            operation.TRANSPOSE if transpose_a else operation.NONE,
            b.handle,
            operation.TRANSPOSE if transpose_b else operation.NONE,
        )
        return self.output_of(layer)

    def convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        """Convolve ``x`` [N, C, spatial...] with ``weight`` [K, C / groups, spatial...]."""
        add, maps = self.definition.add_convolution_nd, weight.shape[0]
        layer = self._convolution(add, x, weight, bias, maps)
        layer.stride_nd, layer.dilation_nd = tuple(stride), tuple(dilation)
        layer.padding_nd = tuple(padding)
        layer.num_groups = groups
        return self.output_of(layer)

    def deconvolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        pre_padding: Sequence[int],
        post_padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        """Transposed convolution of ``x`` with ``weight`` [C, K / groups, spatial...]."""
        add, maps = self.definition.add_deconvolution_nd, weight.shape[1] * groups
        layer = self._convolution(add, x, weight, bias, maps)
        layer.stride_nd, layer.dilation_nd = tuple(stride), tuple(dilation)
        layer.pre_padding, layer.post_padding = tuple(pre_padding), tuple(post_padding)
        layer.num_groups = groups
        return self.output_of(layer)

    def _convolution(
        self,
        add: Callable[[trt.ITensor, int, tuple[int, ...], trt.Weights, trt.Weights], Kernel],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        maps: int,
    ) -> Kernel:
        placeholder = trt.Weights(x.handle.dtype)
        layer = self.layer(add, x.handle, maps, weight.shape[2:], placeholder, placeholder)
        layer.set_input(1, weight.handle)
        if bias is not None:
            layer.set_input(2, bias.handle)
        return layer

    def pool(
        self,
        kind: str,
        x: Tensor,
        window: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        post_padding: Sequence[int] | None = None,
        count_padding: bool = True,
    ) -> Tensor:
        """Pool 2 or 3 trailing axes; ``kind`` is a ``PoolingType``."""
        layer = self.layer(
            self.definition.add_pooling_nd, x.handle, getattr(trt.PoolingType, kind), tuple(window)
        )
        layer.stride_nd = tuple(stride)
        layer.pre_padding = tuple(padding)
        layer.post_padding = tuple(padding if post_padding is None else post_padding)
        if kind == "AVERAGE":
            layer.average_count_excludes_padding = not count_padding
        return self.output_of(layer)

    def reduce(self, operation: str, x: Tensor, axes: Iterable[int], keepdim: bool) -> Tensor:
        """Reduce ``axes`` by a ``ReduceOperation``."""
        kind = getattr(trt.ReduceOperation, operation)
        mask = _mask(axis % x.ndim for axis in axes)
        return self.output_of(self.layer(self.definition.add_reduce, x.handle, kind, mask, keepdim))

    def softmax(self, x: Tensor, axis: int) -> Tensor:
        rank = x.ndim
        axis %= max(rank, 1)
        if rank < 2:  # the layer takes two dimensions or more
            x, axis = self.pad_rank(x, 2), axis + 2 - rank if rank else 1
        layer = self.layer(self.definition.add_softmax, x.handle)
        layer.axes = _mask([axis])
        return self.squeeze(self.output_of(layer), range(2 - rank) if rank < 2 else ())

    def normalization(
        self,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        axes: Iterable[int],
        epsilon: float,
        groups: int = 1,
    ) -> Tensor:
        """Subtract the mean over ``axes``, divide by the deviation, scale and shift.

        ``scale`` and ``bias`` have x's type and rank, with extent 1 where they are broadcast.
        """
        kind = versions.normalization_kind()
        if kind == "normalization" and groups > 1:  # takes a scale for each group, not channel
            shape = [1, groups, *[1] * (x.ndim - 2)]
            one, zero = (
                self.constant(torch.full(shape, number, dtype=x.dtype)) for number in (1, 0)
            )
            normal = self._normalization(kind, x, one, zero, axes, epsilon, groups)
            return self.sum(self.prod(normal, scale), bias)
        return self._normalization(kind, x, scale, bias, axes, epsilon, groups)

    def _normalization(
        self,
        kind: str,
        x: Tensor,
        scale: Tensor,
        bias: Tensor,
        axes: Iterable[int],
        epsilon: float,
        groups: int,
    ) -> Tensor:
        mask = _mask(axis % x.ndim for axis in axes)
        layer = self.add(kind, x.handle, scale.handle, bias.handle, mask)
        layer.epsilon = epsilon
        if groups > 1:
            layer.num_groups = groups
        return self.output_of(layer)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: str,
        decomposable: bool,
    ) -> Tensor:
        """Softmax attention of [B, N, S, H] tensors, not scaled; ``causal`` is a kind's name."""
        kind, how = versions.attention_call(causal)
        layer = self.add(kind, query.handle, key.handle, value.handle, *how)
        if mask is not None:
            layer.mask = mask.handle
        layer.decomposable = decomposable
        return self.output_of(layer)

    def update_cache(self, cache: Tensor, update: Tensor, positions: Tensor) -> Tensor:
        """Write ``update`` [B, N, S, H] into ``cache`` [B, N, T, H], each row from its position on.

        The result shares the memory of ``cache``, which must be an input of the network.
        ``positions`` is int32 [B].
        """
        kind, how = versions.cache_update_call()
        layer = self.add(kind, cache.handle, update.handle, positions.handle, *how)
        return self.output_of(layer)

    def gather(self, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Take slices of ``x`` along ``axis``; the result has the indices' axes in its place."""
        layer = self.layer(self.definition.add_gather, x.handle, indices.handle, axis % x.ndim)
        return self.output_of(layer)

    def gather_mode(self, x: Tensor, indices: Tensor, mode: str, axis: int = 0) -> Tensor:
        """Gather with a ``GatherMode``: ELEMENT (along ``axis``) or ND."""
        layer = self.layer(
            self.definition.add_gather_v2, x.handle, indices.handle, getattr(trt.GatherMode, mode)
        )
        if mode == "ELEMENT":
            layer.axis = axis % x.ndim
        return self.output_of(layer)

    def scatter(
        self, x: Tensor, indices: Tensor, updates: Tensor, mode: str, axis: int = 0
    ) -> Tensor:
        """Overwrite elements of ``x`` with a ``ScatterMode``: ELEMENT (along ``axis``) or ND.

        By element, TensorRT-RTX 1.7.1.116 wants no more updates along an axis than the tensor has
        elements ("The extent of dimension 0 of indices (8000) must be less than or equal to the
        extent of data (2001)"): where it is known that there are more, it is made longer for them.
        """
        kind = getattr(trt.ScatterMode, mode)
        extent, count = x.shape[axis], indices.shape[axis]
        if mode == "ELEMENT" and 0 <= extent < count:
            sizes = self.sizes(x)
            sizes[axis % x.ndim] = count - extent
            more = self.expand(self.scalar(0, x.dtype, x.ndim), sizes)
            longer = self.scatter(self.concat([x, more], axis), indices, updates, mode, axis)
            return self.narrow(longer, axis, 0, extent)
        layer = self.layer(
            self.definition.add_scatter, x.handle, indices.handle, updates.handle, kind
        )
        if mode == "ELEMENT":
            layer.axis = axis % x.ndim
        return self.output_of(layer)

    def topk(self, x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
        """Return values and int64 indices of the ``k`` extreme elements, sorted."""
        if x.ndim == 1:  # the layer takes two dimensions or more
            values, indices = self.topk(self.pad_rank(x, 2), k, 1, largest)
            return self.squeeze(values, [0]), self.squeeze(indices, [0])
        kind = trt.TopKOperation.MAX if largest else trt.TopKOperation.MIN
        mask = _mask([axis % x.ndim])
        layer = self.layer(
            self.definition.add_topk, x.handle, kind, k, mask, *versions.index_type()
        )
        return self.output_of(layer, 0), self.cast(self.output_of(layer, 1), torch.int64)

    def cumulative(self, x: Tensor, axis: int) -> Tensor:
        """Running sum along one axis."""
        where = self.scalar_axis(axis % x.ndim)
        kind = trt.CumulativeOperation.SUM
        return self.output_of(
            self.layer(self.definition.add_cumulative, x.handle, where.handle, kind, False, False)
        )

    def scalar_axis(self, axis: int) -> Tensor:
        return self.scalar(axis, torch.int32)

    def count(self, length: Size, start: int) -> Tensor:
        """Return ``start, start + 1, ...`` as int64, ``length`` of them."""
        layer = self.layer(
            self.definition.add_fill, (1,), trt.FillOperation.LINSPACE, trt.DataType.INT64
        )
        layer.set_input(0, self.shape_tensor([length]).handle)
        layer.set_input(1, self.scalar(start, torch.int64).handle)
        layer.set_input(2, self.constant(torch.ones(1, dtype=torch.int64)).handle)
        return self.output_of(layer)
