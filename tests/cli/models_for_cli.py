"""Models that the command line's tests name as MODEL. Weights are the same in every process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VALUE = 3


def small() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), (torch.ones(2, 8),)


class Scaled(nn.Module):
    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return torch.relu(x) * scale


def with_kwargs() -> tuple[nn.Module, tuple[Tensor], dict[str, Tensor]]:
    return Scaled(), (torch.ones(2, 8),), {"scale": torch.full((8,), 2.0)}


def half() -> tuple[nn.Module, tuple[Tensor]]:
    module, args = small()
    return module.half(), (args[0].half(),)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(torch.relu(x)) + 1  # TensorRT has no Bessel function


def partly_lowered() -> tuple[nn.Module, tuple[Tensor]]:
    return Bessel(), (torch.ones(4),)


class OnlyBessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


def not_lowered() -> tuple[nn.Module, tuple[Tensor]]:
    return OnlyBessel(), (torch.ones(4),)


def talkative() -> tuple[nn.Module, tuple[Tensor]]:
    print("loading the model")
    return small()


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("this model never answers")


def raising() -> tuple[nn.Module, tuple[Tensor]]:
    return Raising(), (torch.ones(2),)


def wrong_shape() -> tuple[nn.Module, tuple[Tensor]]:
    return nn.Linear(2, 2), (torch.ones(3, 3),)


def wants_argument(size: int) -> Any:
    return size


def only_module() -> Any:
    return nn.Linear(2, 2)


def bare_tensor() -> Any:
    return nn.Linear(2, 2), torch.ones(2)


def four_things() -> Any:
    return 1, 2, 3, 4


def no_module() -> Any:
    return 3, ()


def list_as_kwargs() -> Any:
    return nn.Linear(2, 2), (), [1]


def failing() -> Any:
    raise RuntimeError("weights are missing")


def leaving() -> Any:
    raise SystemExit(4)
