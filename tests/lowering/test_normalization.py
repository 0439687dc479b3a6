"""Normalization by statistics of the tensor itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.lowering.check import check, weight


@pytest.mark.parametrize("axes", (1, 2))
@pytest.mark.parametrize("affine", (True, False))
def test_layer_norm(axes: int, affine: bool) -> None:
    """Every transformer block has two."""
    x = torch.randn(2, 3, 4, 5) * 3 + 1
    shape = x.shape[-axes:]
    scale = (weight(*shape), weight(*shape)) if affine else (None, None)
    given = [item for item in scale if item is not None]
    check(lambda x, *w: F.layer_norm(x, shape, *(w or (None, None))), x, *given, build=True)


@pytest.mark.parametrize("groups", (1, 2, 6))
@pytest.mark.parametrize("shape", ((2, 6), (2, 6, 5), (2, 6, 4, 5), (2, 6, 2, 3, 4)), ids=str)
def test_group_norm(groups: int, shape: tuple[int, ...]) -> None:
    """Diffusion models use it throughout. One group is all channels together, not each alone."""
    x = torch.randn(shape) * 2 + torch.arange(6.0).reshape(6, *[1] * (len(shape) - 2))
    if groups == 6 and len(shape) == 2:
        groups = 3
    check(lambda x, w, b: F.group_norm(x, groups, w, b), x, weight(6), weight(6), build=groups < 3)


def test_statistics_are_answered_where_they_are_read() -> None:
    """A caller of the native ops gets mean and deviation with the result."""
    x = torch.randn(2, 6, 5)
    check(lambda x: torch.native_layer_norm(x, (5,), None, None, 1e-5), x)
    check(lambda x: torch.native_group_norm(x, None, None, 2, 6, 5, 3, 1e-5), x)


@pytest.mark.parametrize("kind", (torch.float32, torch.float16), ids=str)
def test_batch_norm_by_the_batch(kind: torch.dtype) -> None:
    """Models left in training mode normalize by the batch: running statistics would be wrong."""
    x = (torch.randn(4, 3, 5) * 2 + 1).to(kind)
    check(
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        x,
        weight(3),
        weight(3),
        build=True,
        tolerance=1e-5 if kind == torch.float32 else 2e-3,
    )
    check(lambda x: F.instance_norm(x), torch.randn(2, 3, 4, 5))


def test_batch_norm_by_running_statistics() -> None:
    """Statistics that are inputs cannot be folded into a convolution and still count."""
    x, mean, var = torch.randn(4, 3, 5), torch.randn(3), torch.rand(3) + 0.5
    check(lambda x, m, v, w: F.batch_norm(x, m, v, w), x, mean, var, weight(3), build=True)


def test_new_running_statistics() -> None:
    """A step in training mode moves them, by the unbiased variance."""
    x, mean, var = torch.randn(4, 3, 5), torch.randn(3), torch.rand(3) + 0.5

    def step(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, training=True, momentum=0.3), mean, var

    check(step, x, mean, var)


def test_rms_norm() -> None:
    """Decoders use it throughout."""
    x = torch.randn(2, 3, 8) * 3
    check(lambda x, w: F.rms_norm(x, (8,), w, 1e-6), x, weight(8), build=True)


def test_running_statistics_that_pytorch_computes_in_another_type_than_it_says() -> None:
    """An engine behind a batch norm of eager PyTorch's would get FP16 where it takes FP32."""
    x, stat = torch.randn(4, 3, 5).half(), torch.rand(3).half() + 0.5

    def step(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> tuple[torch.Tensor, ...]:
        norm = torch.ops.aten._batch_norm_with_update_functional
        result, _, _, _, mean, var = norm(x, mean, mean, mean, var, 0.1, 1e-5)
        return result.relu(), mean.half() + 1.0, var.half() * 2.0

    check(step, x, stat, stat * 2, build=True, tolerance=1e-3)  # one step of FP16
