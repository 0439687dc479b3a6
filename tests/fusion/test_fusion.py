"""What the builder fuses when it is given our networks, read from the plans of real engines.

Layout conversions at the network's inputs and outputs are counted apart: the arguments of a user's
model lie as PyTorch has them (NCHW), a convolution reads channels last, and the conversion is the
model's and not the block's. Two blocks in a row show it: the second adds its own kernels only.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.report.verify import verify

TARGETS = ("sm89", "sm86")


@functools.cache
def plan(kind: type[nn.Module], count: int, target: str) -> PlanReport:
    """The plan of ``count`` blocks in a row, in FP16, its answers proven."""
    torch.manual_seed(0)
    model = nn.Sequential(*(kind() for _ in range(count))).eval()
    x = torch.randn(EXAMPLES[kind])
    report = verify(model, (x,), options={"precision": "fp16", "targets": target, "strict": True})
    assert report.coverage == 1.0 and report.engines == 1
    assert report.relative_l2 < 5e-3
    return report.plans[0]


def is_heavy(kernel: Kernel) -> bool:
    """Matrix products, convolutions and attention."""
    return kernel.arithmetic is not None


class ConvNormRelu(nn.Module):
    """The block that ResNets are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.norm(self.conv(x)))


class LinearGelu(nn.Module):
    """The first half of a transformer's feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.linear(x))


class AddNorm(nn.Module):
    """A residual and the norm behind it; the product makes it one of many in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(256, 256), nn.LayerNorm(256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.linear(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Attention between its projections, as models write it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(256, 256) for _ in range(3))
        self.out = nn.Linear(256, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:2], 4, 64).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


EXAMPLES: dict[type[nn.Module], tuple[int, ...]] = {
    ConvNormRelu: (1, 64, 28, 28),
    LinearGelu: (1, 128, 256),
    AddNorm: (1, 128, 256),
    Attention: (1, 128, 256),
}


def added(kind: type[nn.Module], target: str) -> int:
    """Kernels that one block more costs: what lies at the network's boundary falls out."""
    return plan(kind, 3, target).kernel_count - plan(kind, 2, target).kernel_count


@pytest.mark.parametrize("target", TARGETS)
def test_convolution_norm_and_relu_are_one_kernel(target: str) -> None:
    """Three passes over every feature map instead of one: a ResNet at half its speed."""
    assert added(ConvNormRelu, target) == 1
    report = plan(ConvNormRelu, 2, target)
    convolutions = [kernel for kernel in report.kernels if is_heavy(kernel)]
    assert len(convolutions) == 2
    assert all(kernel.arithmetic == "Half" for kernel in convolutions)
    rest = [kernel for kernel in report.kernels if not is_heavy(kernel)]
    assert len(rest) <= 2  # in from NCHW in FP32, and out to it
    assert not any("norm" in op for kernel in report.kernels for op in kernel.ops)
    constants = [tensor for kernel in convolutions for tensor in kernel.constants]
    # A kernel and one bias for each convolution, and nothing of the norms (scalars aside).
    sizes = sorted(tensor.elements or 0 for tensor in constants if tensor.elements != 1)
    assert sizes == [64, 64, 64 * 64 * 9, 64 * 64 * 9]


@pytest.mark.parametrize("target", TARGETS)
def test_linear_and_gelu_are_one_kernel(target: str) -> None:
    """The widest tensor of a transformer would be written and read once more."""
    assert added(LinearGelu, target) == 1


@pytest.mark.parametrize("target", TARGETS)
def test_residual_and_norm_are_one_kernel(target: str) -> None:
    """Beside its product, a block of residual and norm costs one kernel and not three."""
    assert added(AddNorm, target) == 2
    heavy = [kernel for kernel in plan(AddNorm, 2, target).kernels if is_heavy(kernel)]
    assert len(heavy) == 2


@pytest.mark.parametrize("target", TARGETS)
def test_attention_is_one_or_two_kernels(target: str) -> None:
    """Scores that go through memory cost time and memory in the square of the length."""
    # One kernel for the three projections, one for the output's, the rest is attention.
    assert added(Attention, target) - 2 in (1, 2)
