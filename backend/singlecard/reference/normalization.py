"""Layers that rescale: normalization, local response normalization, scale."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from singlecard.reference.table import Call, evaluates


@evaluates("NORMALIZATION")
def normalization(call: Call) -> Tensor:
    x, scale, bias = call[0], call[1], call[2]
    axes, groups = call.axes(), call.integer("num_groups")
    if groups == 1:
        return _standardized(x, axes, call.number("epsilon")) * scale + bias
    # The channels of a group are reduced together with the axes given, each one place further.
    grouped = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    inner = (2, *(axis + 1 for axis in axes if axis > 1))
    result = _standardized(grouped, inner, call.number("epsilon")).flatten(1, 2)
    return result * _per_channel(scale, x) + _per_channel(bias, x)


def _standardized(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    """Version 1 of the layer has one scale for each group, version 2 one for each channel."""
    if vector.shape[1] in (1, x.shape[1]):
        return vector
    return vector.repeat_interleave(x.shape[1] // vector.shape[1], dim=1)


@evaluates("LRN")
def local_response_normalization(call: Call) -> Tensor:
    return functional.local_response_norm(
        call[0],
        call.integer("window_size"),
        call.number("alpha"),
        call.number("beta"),
        call.number("k"),
    )


@evaluates("SCALE")
def scale(call: Call) -> Tensor:
    """``(x * scale + shift) ** power``, each of them optional."""
    x = call[0]
    factor, shift, power = (_coefficients(call, role, x) for role in ("scale", "shift", "power"))
    if factor is not None:
        x = x * factor
    if shift is not None:
        x = x + shift
    return x if power is None else torch.pow(x, power)


def _coefficients(call: Call, role: str, x: Tensor) -> Tensor | None:
    values = call.weights(role)
    if values is None:
        return None
    match call.text("mode"):
        case "UNIFORM":
            return values.reshape(())
        case "CHANNEL":
            axis = call.integer("channel_axis")
            return values.reshape(-1, *[1] * (x.dim() - axis - 1))
        case _:
            return values.reshape(x.shape[1:] if values.numel() != x.numel() else x.shape)
