"""Places, angles and what is compared keep the digits that FP16 and BF16 do not have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import singlecard
from singlecard.passes import simplify
from singlecard.precision.casts import lower_precision
from singlecard.precision.places import places_of
from tests.graphs import program_of

WIDE = 2048


class Warped(nn.Module):
    """A flow that a convolution predicts, added to a grid of places."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([columns, rows]).float() + self.flow(x)
        grid = [places[:, 0] * 2 / (width - 1) - 1, places[:, 1] * 2 / (height - 1) - 1]
        return F.grid_sample(x, torch.stack(grid, -1), align_corners=True)


class Turned(nn.Module):
    """A spatial transformer: a product of six learned numbers and a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        theta = self.linear(x.mean((2, 3))).view(-1, 2, 3) * 0.1
        grid = F.affine_grid(theta + torch.eye(2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class Deformed(nn.Module):
    """Deformable attention: reference points and small offsets of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor, query: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        places = points + self.offsets(query) / torch.tensor([x.shape[-1], x.shape[-2]])
        return F.grid_sample(x, (2 * places - 1)[:, :, None], align_corners=False)


class Waves(nn.Module):
    """Random Fourier features of coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(2, 32) * 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        angles = 2 * math.pi * x @ self.directions
        return torch.cat([angles.sin(), angles.cos()], -1)


def time_steps(t: torch.Tensor) -> torch.Tensor:
    steps = torch.exp(-math.log(10000) * torch.arange(32) / 32)
    angles = t[:, None] * steps
    return torch.cat([angles.sin(), angles.cos()], -1)


def octaves(x: torch.Tensor) -> torch.Tensor:
    return (x[..., None] * 2.0 ** torch.arange(10)).flatten(-2).sin()


def phases(pitch: torch.Tensor) -> torch.Tensor:
    return torch.sin(torch.cumsum(pitch / 24000, 1) * 2 * math.pi)


def between_pixels(image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    left = x.floor()
    share, place = x - left, left.long().clamp(0, image.shape[0] - 2)
    return image[place] * (1 - share) + image[place + 1] * share


def slopes(scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return (scores - (places[:, None] - places[None]).abs() / 8).softmax(-1)


def buckets(places: torch.Tensor) -> torch.Tensor:
    distance = (places[:, None] - places[None]).abs()
    return torch.log(distance + 1).round() + torch.bucketize(places, torch.arange(0, 4096.0, 4))


def enlarged(flow: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    places = F.interpolate(flow, scale_factor=2.0, mode="bilinear") * 2 / (WIDE - 1) - 1
    return F.grid_sample(x, places.permute(0, 2, 3, 1), align_corners=True)


def image() -> torch.Tensor:
    return torch.rand(1, 4, 8, WIDE)


CASES: dict[
    str, tuple[Callable[[], Callable[..., Any]], Callable[[], tuple[torch.Tensor, ...]]]
] = {
    "a grid that is given": (
        lambda: lambda x, grid: F.grid_sample(x, grid, align_corners=False),
        lambda: (image(), torch.rand(1, 8, WIDE, 2) * 2 - 1),
    ),
    "a flow": (Warped, lambda: (image(),)),
    "a spatial transformer": (Turned, lambda: (image(),)),
    "deformable attention": (
        Deformed,
        lambda: (image(), torch.rand(1, 64, 8), torch.rand(1, 64, 2)),
    ),
    "an enlarged flow": (
        lambda: enlarged,
        lambda: (torch.rand(1, 2, 4, WIDE // 2) * (WIDE - 1), image()),
    ),
    "pixels between which it is read": (
        lambda: between_pixels,
        lambda: (torch.rand(WIDE), torch.rand(64) * (WIDE - 1)),
    ),
    "time steps": (lambda: time_steps, lambda: (torch.tensor([1.5, 500.3, 998.4]),)),
    "octaves of coordinates": (lambda: octaves, lambda: (torch.rand(64, 3) * 4 - 2,)),
    "Fourier features": (Waves, lambda: (torch.rand(64, 2),)),
    "phases": (lambda: phases, lambda: (torch.rand(1, 4096) * 200 + 100,)),
    "slopes of distances": (
        lambda: slopes,
        lambda: (torch.randn(64, 64), torch.arange(64.0) + 3000),
    ),
    "buckets of distances": (lambda: buckets, lambda: (torch.rand(64) * 4096,)),
    "a threshold": (
        lambda: lambda x: torch.where(x > 0.5, x, -x),
        lambda: (torch.rand(4, WIDE),),
    ),
    "the order of values": (
        lambda: lambda x: x.topk(3)[1].float() + x.argmax(-1, keepdim=True),
        lambda: (torch.rand(8, WIDE),),
    ),
    "classes by rounding": (
        lambda: (
            lambda x: F.one_hot((x * 100).long(), 100).float() + torch.remainder(x * 99, 1)[:, None]
        ),
        lambda: (torch.rand(WIDE),),
    ),
    "peaks": (
        lambda: lambda x: (F.max_pool2d(x, 3, 1, 1) == x) * x,
        lambda: (torch.rand(1, 1, 16, 64),),
    ),
}


_BF16 = ("a flow", "time steps", "slopes of distances")


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp16") for name in CASES), *((name, "bf16") for name in _BF16)],
)
def test_answers_are_as_near_as_features_are(name: str, precision: str) -> None:
    """A place that is rounded is another place: answers are wrong by percents, not by digits."""
    torch.manual_seed(0)
    make, arguments = CASES[name]
    model = make()
    if isinstance(model, nn.Module):
        model.eval()
    report = singlecard.verify(
        model, arguments(), options={"precision": precision, "targets": "sm89", "min_block_size": 1}
    )
    assert report.engines and not report.fallback
    assert report.relative_l2 < (1e-3 if precision == "fp16" else 8e-3)


def low_ops(module: Callable[..., Any], *args: torch.Tensor) -> set[str]:
    program = program_of(module, *args)
    simplify(program)
    lower_precision(program, torch.float16, lambda node: False)
    return {
        str(node.target)
        for node in program.calls()
        if isinstance(node.meta["val"], torch.Tensor) and node.meta["val"].dtype == torch.float16
    }


def test_what_gives_and_reads_features_computes_in_half() -> None:
    """A convolution that predicts a flow in FP32 would cost its model the speed of FP16."""
    assert "aten.convolution.default" in low_ops(Warped(), image())
    assert {"aten.linear.default", "aten.sin.default"} <= low_ops(
        lambda x, w: torch.sin(F.linear(x, w) * 30), torch.randn(4, 64), torch.randn(64, 64)
    )


def test_features_are_compared_as_they_are() -> None:
    """Nothing is won by digits that are gone, and a cast to FP32 is traffic."""
    layer = nn.Linear(64, 64)
    program = program_of(lambda x: layer(x).relu().topk(3)[1], torch.randn(2, 64))
    simplify(program)
    assert not places_of(program).kept


def test_report_says_what_is_kept() -> None:
    """A user who wonders where FP32 comes from finds the ops in the trace."""
    program = program_of(time_steps, torch.tensor([1.5]))
    simplify(program)
    lower_precision(program, torch.float16, lambda node: False)
    assert any(line.startswith("keep_places at sin") for line in program.trace)


def test_layer_on_coordinates_is_not_quantized() -> None:
    """Eight bits for a coordinate are no coordinate any more."""
    layer = nn.Linear(2, 64)
    program = program_of(lambda x: torch.sin(30 * layer(x)), torch.rand(16, 2))
    simplify(program)
    (linear,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert linear in places_of(program)
