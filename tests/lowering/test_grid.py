"""Reading a tensor at the places of a grid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from singlecard.errors import CaptureError
from tests.lowering.check import check, refuse


@pytest.mark.parametrize("align_corners", (True, False))
@pytest.mark.parametrize("border", ("zeros", "border", "reflection"))
@pytest.mark.parametrize("mode", ("bilinear", "nearest", "bicubic"))
def test_planes(mode: str, border: str, align_corners: bool) -> None:
    """Deformable attention and optical flow read beyond the border as well."""
    x, grid = torch.randn(2, 3, 5, 6), torch.rand(2, 4, 3, 2) * 3 - 1.5
    check(
        lambda x, g: F.grid_sample(x, g, mode, border, align_corners),
        x,
        grid,
        build=mode == "bilinear",
    )


@pytest.mark.parametrize("align_corners", (True, False))
@pytest.mark.parametrize("border", ("zeros", "border", "reflection"))
@pytest.mark.parametrize("mode", ("bilinear", "nearest"))
def test_volumes(mode: str, border: str, align_corners: bool) -> None:
    """TensorRT's layer knows planes only, although it builds for volumes."""
    x, grid = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 2, 3, 4, 3) * 4 - 2
    check(
        lambda x, g: F.grid_sample(x, g, mode, border, align_corners),
        x,
        grid,
        build=border == "reflection",
    )


def test_affine_grid() -> None:
    """Spatial transformers make their grid of a matrix."""
    turn = torch.tensor([[[0.8, -0.6, 0.1], [0.6, 0.8, 0.0]]])
    check(
        lambda x, t: F.grid_sample(x, F.affine_grid(t, [1, 2, 4, 4], False), align_corners=False),
        torch.randn(1, 2, 5, 5),
        turn,
    )


def test_unknown_mode_stays_in_pytorch() -> None:
    """PyTorch itself has no cubic sampling of volumes: eager must be the one to say so."""
    with pytest.raises(CaptureError, match="bicubic interpolation only supports 4D input"):
        refuse(
            lambda x, g: torch.ops.aten.grid_sampler_3d(x, g, 2, 0, False),
            torch.randn(1, 1, 2, 2, 2),
            torch.rand(1, 1, 1, 1, 3),
        )
