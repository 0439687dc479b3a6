"""The same elements in another shape, order or number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.lowering.check import check

_CALLS: dict[str, Callable[..., Any]] = {
    "view": lambda x: x.view(3, 2, 20),
    "view with -1": lambda x: x.view(-1, 5),
    "permute": lambda x: x.permute(2, 0, 1),
    "movedim": lambda x: x.movedim(0, -1),
    "transpose": lambda x: x.transpose(-1, 0),
    "expand": lambda x: x[:1].expand(7, -1, -1),
    "unsqueeze": lambda x: x.unsqueeze(-1).unsqueeze(0),
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(0).squeeze(),
    "repeat": lambda x: x.repeat(2, 1, 3, 1),
    "tile": lambda x: x.tile((2, 2)),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "flip": lambda x: x.flip(0, -1),
    "rot90": lambda x: x.rot90(1, (0, 2)),
    "roll": lambda x: x.roll((-2, 7), (1, 2)),
    "roll flat": lambda x: x.roll(5),
    "roll one axis twice": lambda x: x.roll((1, 1), (1, 1)),
    "pixel_shuffle": lambda x: torch.nn.functional.pixel_shuffle(x.reshape(4, 5, 6), 2),
    "pixel_unshuffle": lambda x: torch.nn.functional.pixel_unshuffle(x.view(5, 4, 6), 2),
    "channel_shuffle": lambda x: torch.nn.functional.channel_shuffle(x.view(1, 6, 4, 5), 3),
}


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
@pytest.mark.parametrize("name", _CALLS)
def test_moves_elements(name: str, kind: torch.dtype) -> None:
    """A model shuffles masks and positions like features: elements of any type must arrive."""
    x = torch.randint(0, 100, (6, 4, 5)) if kind != torch.bool else torch.rand(6, 4, 5) > 0.5
    check(_CALLS[name], x.to(kind), build=kind == torch.bool)


def test_numbers_without_axes() -> None:
    """Losses and thresholds have no axes: many layers of TensorRT refuse those."""
    check(
        lambda x: (x.flip(()), x.roll(1), x.repeat(2), x.unsqueeze(0), x.t(), x.reshape(1, 1)),
        torch.tensor(3.0),
    )
