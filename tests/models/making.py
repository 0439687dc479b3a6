"""Inputs and seeded random weights, under which every part of a model matters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.listing import Case

VOCABULARY = 100


def words(length: int = 12, batch: int = 2) -> Tensor:
    """Return token numbers: (batch, length), none of them special."""
    return torch.randint(5, VOCABULARY - 5, (batch, length))


def padding(length: int = 12, batch: int = 2, left: bool = False) -> Tensor:
    """Return a mask of ones and zeros whose last row has three tokens of padding."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, slice(0, 3) if left else slice(-3, None)] = 0
    return mask


def image(size: int = 64, batch: int = 1) -> Tensor:
    """Return images whose four quarters differ, so that places differ: (batch, 3, size, size)."""
    coarse = nn.functional.interpolate(torch.randn(batch, 3, 4, 4), size=(size, size))
    return coarse + 0.5 * torch.randn(batch, 3, size, size)


def sound(samples: int = 1600, batch: int = 1) -> Tensor:
    """Return a few tones with noise: (batch, samples)."""
    time = torch.arange(samples) / samples
    tones = torch.stack([torch.sin(2 * math.pi * f * time) for f in (40.0, 90.0)])
    return torch.randn(batch, 2) @ tones + 0.1 * torch.randn(batch, samples)


def lively(module: nn.Module) -> nn.Module:
    """Draw weights anew, so that signals keep their size through the layers.

    The usual initialization (deviation 0.02, biases 0, norms 1) lets the signal of a narrow model
    die out: scores tie, and an op that is wrong may not be seen in the answer.
    """
    for part in module.modules():
        for weight in part.parameters(recurse=False):
            if isinstance(part, nn.Embedding):
                weight.normal_(std=0.5)
            elif weight.ndim < 2:
                weight.add_(torch.randn_like(weight), alpha=0.05)
            elif _is_product(part) or weight.numel() < 2 or float(weight.std()) < 0.05:
                fan_in = weight[0].numel() if _is_convolution(part) else weight.shape[-1]
                weight.normal_(std=fan_in**-0.5)
            else:  # holds a structure of its own, such as the decays of a state space
                weight.add_(torch.randn_like(weight), alpha=0.05)
    return module


def _is_product(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) or _is_convolution(part)


def _is_convolution(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.conv._ConvNd) and not part.transposed


def settled(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Give batch norms the statistics of one batch; fresh ones have mean 0 and variance 1."""

    def settle(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        axes = [axis for axis in range(given[0].ndim) if axis != 1]
        norm.running_mean.copy_(given[0].mean(axes))
        norm.running_var.copy_(given[0].var(axes, correction=0).clamp(min=0.1))

    hooks = [
        part.register_forward_pre_hook(settle)
        for part in module.modules()
        if isinstance(getattr(part, "running_var", None), Tensor)
    ]
    module.eval()(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return module


def vision(module: nn.Module, size: int = 64, **kwargs: Any) -> Case:
    """Return a model of one image, its batch norms settled."""
    given = {"pixel_values": image(size), **kwargs}
    settled(lively(module), **given | {"pixel_values": image(size, batch=4)})
    return module, (), given


def labelling(kind: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """Return a classifier of ten labels; the usual two could agree by accident."""
    config.num_labels = 10
    return kind(config)
