"""What linear layers are fed with: the order they run in, the second moments of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from singlecard.errors import CalibrationError
from singlecard_calib.feeding import Call, run
from singlecard_calib.layers import Layer

#: Layers are taken in so many turns, each calibrated with those of the turns before it rounded.
_TURNS = 8

#: Memory of all matrices of a turn; one layer may have more.
_TURN_BYTES = 1 << 30


def order_of(model: nn.Module, held: Sequence[Call], layers: Sequence[Layer]) -> list[Layer]:
    """Run all calls; return the layers that have inputs, in the order they first run.

    Raises:
        CalibrationError: an input is NaN or infinite.
    """
    seen: dict[int, None] = {}

    def look(place: int, inputs: torch.Tensor) -> None:
        if not bool(torch.isfinite(inputs).all()):
            raise CalibrationError(
                f"an input of {layers[place].name} has NaN or infinite values: look for the call "
                "that makes it so, or leave the layer out with exclude"
            )
        if len(inputs):
            seen.setdefault(place)

    with _watched(layers, look):
        for call in held:
            run(model, call)
    return [layers[place] for place in seen]


def turns_of(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Divide layers, in order, into turns that are calibrated together."""
    most = -(-len(layers) // _TURNS)
    turns: list[list[Layer]] = []
    used = 0
    for layer in layers:
        size = 4 * layer.weight.shape[layer.input_axis] ** 2
        if not turns or len(turns[-1]) == most or used + size > _TURN_BYTES:
            turns.append([])
            used = 0
        turns[-1].append(layer)
        used += size
    return turns


def hessians_of(
    model: nn.Module, held: Sequence[Call], layers: Sequence[Layer]
) -> list[torch.Tensor]:
    """Run all calls; return 2 Σ x xᵀ over the inputs x of each layer, FP32 [inputs, inputs]."""
    sums = []
    for layer in layers:
        inputs = layer.weight.shape[layer.input_axis]
        sums.append(torch.zeros(inputs, inputs, device=layer.weight.device))

    def add(place: int, inputs: torch.Tensor) -> None:
        values = inputs.to(sums[place])
        sums[place].addmm_(values.T, values, alpha=2.0)

    with _watched(layers, add):
        for call in held:
            run(model, call)
    return sums


@contextmanager
def _watched(layers: Sequence[Layer], look: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """Show each layer's inputs, as [samples, inputs], under the layer's place in the list."""
    hooks = []

    def hook_of(place: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs: torch.Tensor = args[0] if args else next(iter(kwargs.values()))
            look(place, inputs.detach().reshape(-1, inputs.shape[-1]))

        return hook

    try:
        for place, layer in enumerate(layers):
            for module in layer.modules:
                hooks.append(module.register_forward_pre_hook(hook_of(place), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
