"""Layers that read or write at places which another tensor names."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from singlecard.reference.table import Call, evaluates


@evaluates("GATHER", widens=False)
def gather(call: Call) -> Tensor:
    match call.text("mode"):
        case "DEFAULT":
            return _gather_slices(call)
        case "ELEMENT":
            data, axis = call[0], call.integer("axis")
            indices, outside = _places(call[1], data.shape[axis])
            return data.gather(axis, indices).masked_fill(outside, 0)
        case _:
            return _gather_nd(call[0], call[1], call.integer("num_elementwise_dims"))


def _places(indices: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Indices that are safe to read at, counted from the end if negative, and which were not."""
    indices = indices.long()
    wrapped = torch.where(indices < 0, indices + length, indices)
    outside = (wrapped < 0) | (wrapped >= length)
    return wrapped.masked_fill(outside, 0), outside


def _gather_slices(call: Call) -> Tensor:
    """One index picks a slice; TensorRT reads zeros where an index is out of bounds."""
    data, axis = call[0], call.integer("axis")
    indices, outside = _places(call[1], data.shape[axis])
    if call.integer("num_elementwise_dims"):
        return _gather_by_batch(data, indices, outside, axis)
    result = data.index_select(axis, indices.flatten())
    result = result.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])
    if not outside.any():
        return result
    beyond = outside.reshape(outside.shape + (1,) * (data.dim() - axis - 1))
    return result.masked_fill(beyond, 0)


def _gather_by_batch(data: Tensor, indices: Tensor, outside: Tensor, axis: int) -> Tensor:
    """Each element of the first dimension has indices of its own."""
    batch = max(data.shape[0], indices.shape[0])
    rows = torch.arange(batch, device=data.device).reshape([-1] + [1] * (indices.dim() - 1))
    slices = data.expand(batch, *data.shape[1:]).movedim(axis, 1)
    result = slices[rows, indices.expand(batch, *indices.shape[1:])]
    beyond = outside.reshape(outside.shape + (1,) * (data.dim() - 2))
    result = result.masked_fill(beyond, 0)
    # The dimensions of the indices belong where the axis was.
    count = indices.dim() - 1
    return result.movedim(list(range(1, 1 + count)), list(range(axis, axis + count)))


def _gather_nd(data: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    depth = indices.shape[-1]
    batch, indexed = data.shape[:batch_dims], data.shape[batch_dims : batch_dims + depth]
    rest = data.shape[batch_dims + depth :]
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
    outside = torch.zeros_like(place, dtype=torch.bool)
    for level, length in enumerate(indexed):
        within, beyond = _places(indices[..., level], length)
        place, outside = place * length + within, outside | beyond
    count, volume = math.prod(batch), math.prod(indexed)
    offsets = torch.arange(count, device=data.device).reshape(count, 1) * volume
    flat = (place.reshape(count, -1) + offsets).flatten()
    result = data.reshape(count * volume, -1).index_select(0, flat)
    result = result.masked_fill(outside.reshape(-1, 1), 0)
    return result.reshape(indices.shape[:-1] + rest)


@evaluates("SCATTER", widens=False)
def scatter(call: Call) -> Tensor:
    data, indices, updates = call[0], call[1].long(), call[2]
    if call.text("mode") == "ELEMENT":
        axis = call.integer("axis")
        return data.scatter(axis, _from_start(indices, data.shape[axis]), updates)
    depth = indices.shape[-1]
    places = tuple(_from_start(indices[..., level], data.shape[level]) for level in range(depth))
    return data.index_put(places, updates) if depth else updates.reshape(data.shape)


def _from_start(indices: Tensor, length: int) -> Tensor:
    return torch.where(indices < 0, indices + length, indices)


@evaluates("ONE_HOT", widens=False)
def one_hot(call: Call) -> Tensor:
    indices, (off, on) = call[0].long(), call[1].unbind()
    depth, axis = int(call[2].item()), call.integer("axis")
    axis %= indices.dim() + 1
    classes = torch.arange(depth, device=indices.device)
    shape = [-1 if i == axis else 1 for i in range(indices.dim() + 1)]
    hot = _from_start(indices, depth).unsqueeze(axis) == classes.reshape(shape)
    return torch.where(hot, on, off)


@evaluates("NON_ZERO", widens=False)
def non_zero(call: Call) -> Tensor:
    return call[0].nonzero().T


@evaluates("REVERSE_SEQUENCE", widens=False)
def reverse_sequence(call: Call) -> Tensor:
    x, lengths = call[0], call[1].long()
    batch_axis, axis = call.integer("batch_axis"), call.integer("sequence_axis")
    places = torch.arange(x.shape[axis], device=x.device)
    reversed_places = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)
    shape = [x.shape[i] if i in (batch_axis, axis) else 1 for i in range(x.dim())]
    ordered = reversed_places if batch_axis < axis else reversed_places.T
    return x.gather(axis, ordered.reshape(shape).expand(x.shape))
