"""Bytes: images come as uint8, masks and codes leave as such."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.lowering.check import check

IMAGE = torch.arange(60, dtype=torch.uint8).reshape(4, 5, 3) * 4

OF_BYTES: dict[str, Callable[[torch.Tensor], object]] = {
    "an image in front of a model": lambda x: x.permute(2, 0, 1)[None].float().div(255),
    "an image divided": lambda x: (x / 255 - 0.5) * 2,
    "halves": lambda x: x.to(torch.float16) + 1,
    "truth values": lambda x: x.bool().any(-1),
    "an image as a result": lambda x: (x.float() * 1.7).round().clamp(0, 255).to(torch.uint8),
    "bytes in between": lambda x: x.long().mul(3).to(torch.uint8).float().sqrt(),
    "negative bytes": lambda x: (x.int() - 100).to(torch.int8).int() + 1,
    "both types": lambda x: (
        x.to(torch.int8),
        x.int().to(torch.int8).to(torch.uint8).float().exp(),
    ),
}


@pytest.mark.parametrize("name", OF_BYTES)
def test_bytes(name: str) -> None:
    """Left out, the conversion cuts the model off from its input, and moves four times as much."""
    check(OF_BYTES[name], IMAGE, build=True)


def test_what_does_not_fit_into_a_byte_wraps_around() -> None:
    """PyTorch keeps the lowest eight bits of integers; cutting off at 255 is another picture."""
    x = torch.tensor([-300, -129, -128, -1, 0, 127, 128, 255, 256, 1000, 2**40 + 7])
    check(lambda x: (x.to(torch.uint8), x.to(torch.int8)), x, build=True)
    check(lambda x: x.to(torch.uint8), torch.tensor([-3.7, 0.9, 254.99, 300.5]))
