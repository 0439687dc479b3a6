"""Decompositions of our own, where PyTorch's leave in the graph what no engine can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

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


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.cat.default: _cat,
    aten.mkldnn_rnn_layer.default: _lstm_layer,
}
