"""Normalization by statistics of the tensor itself: over trailing axes, groups, batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from singlecard.lowering.conditions import arg, dtype
from singlecard.lowering.declaration import accepts, lowers
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor

aten = torch.ops.aten


@lowers(aten.native_layer_norm.default)
@accepts(dtype("input").floating, arg("normalized_shape").known)
def native_layer_norm(
    net: Net,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> list[Tensor | None]:
    """Normalization over trailing axes."""
    axes = range(input.ndim - len(normalized_shape), input.ndim)
    scale, shift = (
        net.pad_rank(net.cast(value, input.dtype), input.ndim)
        for value in _scale_and_shift(net, input, weight, bias)
    )
    normal = net.normalization(input, scale, shift, axes, eps)
    return [normal, *_statistics(net, input, axes, eps)]


def _scale_and_shift(
    net: Net, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    return weight or net.scalar(1.0, x.dtype, x.ndim), bias or net.scalar(0.0, x.dtype, x.ndim)


def _statistics(net: Net, x: Tensor, axes: Iterable[int], eps: float) -> list[Tensor | None]:
    """Return mean and reciprocal deviation, as far as anything reads them."""
    if not net.used & {1, 2}:
        return [None, None]
    mean, variance = moments(net, x, axes)
    found = mean, _reciprocal_root(net, variance, eps)
    return [net.cast(item, _kind(net, place)) for place, item in enumerate(found, 1)]


def moments(net: Net, x: Tensor, axes: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance over axes, in FP32, the axes kept with extent 1."""
    axes = list(axes)
    x = net.cast(x, torch.float32)
    mean = net.reduce("AVG", x, axes, True)
    away = net.sub(x, mean)
    return mean, net.reduce("AVG", net.prod(away, away), axes, True)


def _reciprocal_root(net: Net, variance: Tensor, eps: float) -> Tensor:
    shifted = net.sum(variance, net.scalar(eps, variance.dtype, variance.ndim))
    return net.unary("RECIP", net.unary("SQRT", shifted))


@lowers(aten.native_group_norm.default)
@accepts(dtype("input").floating, arg("C").known)
def native_group_norm(
    net: Net,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    N: Size,
    C: int,
    HxW: Size,
    group: int,
    eps: float,
) -> list[Tensor | None]:
    """Normalization over groups of channels and all axes behind them."""
    x = net.unsqueeze(input, 2) if input.ndim == 2 else input
    shape = [1, C, *[1] * (x.ndim - 2)]
    # A single one for all channels is refused by the builder, not by the layer (1.7.1.116).
    scale, shift = (
        net.constant(torch.full(shape, number, dtype=x.dtype))
        if value is None
        else net.reshape(net.cast(value, x.dtype), shape)
        for value, number in ((weight, 1.0), (bias, 0.0))
    )
    # One group is all channels: the layer reads its own "one group" as each channel alone.
    axes = range(1 if group == 1 else 2, x.ndim)
    normal = net.normalization(x, scale, shift, axes, eps, group)
    if not net.used & {1, 2}:
        return [net.reshape(normal, net.sizes(input)), None, None]
    rows = net.reshape(x, [N, group, -1])
    mean, deviation = (
        None if item is None else net.squeeze(item, [2])
        for item in _statistics(net, rows, [2], eps)
    )
    return [net.reshape(normal, net.sizes(input)), mean, deviation]


def _per_channel(net: Net, vector: Tensor, rank: int) -> Tensor:
    return net.reshape(net.cast(vector, torch.float32), [1, -1, *[1] * (rank - 2)])


def _batch_normal(
    net: Net,
    x: Tensor,
    mean: Tensor,
    root: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """(x - mean) * root * weight + bias, in FP32, returned in the type of ``x``."""
    factor = root if weight is None else net.prod(root, _per_channel(net, weight, x.ndim))
    normal = net.prod(net.sub(net.cast(x, torch.float32), mean), factor)
    if bias is not None:
        normal = net.sum(normal, _per_channel(net, bias, x.ndim))
    return net.cast(normal, x.dtype)


@lowers(aten._native_batch_norm_legit_no_training.default)
@accepts(dtype("input").floating)
def batch_norm_inference(
    net: Net,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> list[Tensor | None]:
    """Normalization by running statistics."""
    mean = _per_channel(net, running_mean, input.ndim)
    root = _reciprocal_root(net, _per_channel(net, running_var, input.ndim), eps)
    return [_batch_normal(net, input, mean, root, weight, bias), None, None]


@lowers(aten._native_batch_norm_legit.no_stats)
@accepts(dtype("input").floating)
def batch_norm_no_stats(
    net: Net,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> list[Tensor | None]:
    """Normalization by the statistics of the batch."""
    mean, variance = moments(net, input, _all_but_channels(input))
    root = _reciprocal_root(net, variance, eps)
    normal = _batch_normal(net, input, mean, root, weight, bias)
    return [normal, *_saved(net, mean, root)]


def _all_but_channels(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _saved(net: Net, mean: Tensor, root: Tensor) -> list[Tensor]:
    return [
        net.cast(net.reshape(item, [-1]), _kind(net, place))
        for place, item in ((1, mean), (2, root))
    ]


def _kind(net: Net, place: int) -> torch.dtype:
    """Return the type that PyTorch says an entry of the result has."""
    return net.result[place].dtype  # type: ignore[no-any-return]


@lowers(aten._native_batch_norm_legit_functional.default)
@accepts(dtype("input").floating, arg("input").static_shape)
def batch_norm_functional(
    net: Net,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> list[Tensor | None]:
    """Normalization by the statistics of the batch, and new running statistics."""
    if not training:
        given = input, weight, bias, running_mean, running_var
        kept = [net.cast(running_mean, _kind(net, 3)), net.cast(running_var, _kind(net, 4))]
        return [*batch_norm_inference(net, *given, momentum, eps), *kept]
    mean, variance = moments(net, input, _all_but_channels(input))
    root = _reciprocal_root(net, variance, eps)
    result = _batch_normal(net, input, mean, root, weight, bias)
    samples = math.prod(input.shape) // input.shape[1]
    unbiased = net.times(variance, samples / max(samples - 1, 1))
    running = [
        net.cast(_moved(net, old, new, momentum), _kind(net, place))
        for place, old, new in ((3, running_mean, mean), (4, running_var, unbiased))
    ]
    return [result, *_saved(net, mean, root), *running]


def _moved(net: Net, running: Tensor, fresh: Tensor, momentum: float) -> Tensor:
    """Move a running statistic towards that of the batch."""
    old = net.times(net.cast(running, torch.float32), 1 - momentum)
    new = net.times(net.reshape(fresh, [-1]), momentum)
    return net.sum(old, new)
