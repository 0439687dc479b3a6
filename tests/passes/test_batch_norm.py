"""Batch normalization is folded where its statistics are constant, without leaving FP16's range."""

from __future__ import annotations

import torch
from torch import nn

from singlecard.options import Options
from singlecard.passes import simplify
from singlecard.report.verify import verify
from tests.graphs import fired, program_of, simplified, targets


def normed(channels: int, rank: int = 2) -> nn.Module:
    torch.manual_seed(0)
    kinds = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    norm = kinds[rank](channels).eval()
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias)
    return norm


def test_folds_into_convolution() -> None:
    """A user would pay two more passes over every feature map of a ResNet."""
    program = simplified(
        nn.Sequential(nn.Conv2d(3, 4, 3), normed(4)).eval(), torch.randn(1, 3, 8, 8)
    )
    assert targets(program) == ["aten.convolution.default"]


def test_folds_into_grouped_and_transposed_convolution() -> None:
    """Grouped and transposed kernels keep their channels on other axes: wrong answers if mixed."""
    x = torch.randn(1, 4, 8, 8)
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), normed(4)).eval()
    assert targets(simplified(grouped, x)) == ["aten.convolution.default"]
    up = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2), normed(6)).eval()
    assert targets(simplified(up, x)) == ["aten.convolution.default"]


def test_grouped_transposed_convolution_is_left() -> None:
    """Channels of a grouped transposed kernel cannot be scaled by one axis."""
    up = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), normed(6)).eval()
    program = simplified(up, torch.randn(1, 4, 8, 8))
    assert targets(program)[1:] == ["aten.sub.Tensor", "aten.mul.Tensor", "aten.add.Tensor"]


class Twice(nn.Module):
    """The convolution's own output is used beside the norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), normed(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_convolution_used_twice_keeps_its_weights() -> None:
    """The other user of the convolution would see normalized values."""
    program = simplified(Twice().eval(), torch.randn(1, 3, 8, 8))
    assert "aten.sub.Tensor" in targets(program)


def test_norm_without_convolution() -> None:
    """Ranks 2 to 5 keep their channels on axis 1; a wrong axis would still have the right shape."""
    for rank, shape in enumerate([(4, 4), (4, 4, 4), (4, 4, 4, 4), (4, 4, 4, 4, 4)]):
        program = simplified(normed(4, rank), torch.randn(*shape))
        assert "fold_batch_norm" in fired(program)


def test_training_mode_is_left() -> None:
    """In training mode the statistics are the batch's own: folding would freeze them."""
    program = program_of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train(), torch.randn(2, 3, 8, 8)
    )
    simplify(program)
    assert "fold_batch_norm" not in fired(program)
    assert len(program.mutations) == 3  # mean, variance and the count of batches


def test_variance_beyond_fp16_folds_first() -> None:
    """Real networks have variances above 65504: cast before folding, channels become zero."""
    block = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), normed(4)).eval()
    block[1].running_var.fill_(2e5)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        block[0].weight.mul_(400)  # type: ignore[union-attr, operator]
    report = verify(block, (torch.randn(1, 3, 8, 8),), options={"precision": "fp16"})
    assert report.relative_l2 < 5e-3


def test_large_mean_does_not_overflow() -> None:
    """x * scale leaves FP16's range where (x - mean) * scale does not: infinity for a user."""
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean.fill_(1000)  # type: ignore[union-attr, operator]
    norm.running_var.fill_(1e-4)  # type: ignore[union-attr, operator]
    x = 1000 + torch.randint(-1, 2, (1, 3, 4, 4)).float()
    report = verify(norm, (x,), options=Options.parse({"precision": "fp16"}))
    assert report.relative_l2 < 5e-3


def test_fold_that_overflows_is_not_done() -> None:
    """A half model's kernel times a huge scale is infinity; kept apart it is not."""
    block = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1e-12)).eval()
    nn.init.constant_(block[0].weight, 3e4)  # type: ignore[arg-type]
    block[1].running_var.fill_(1e-2)  # type: ignore[union-attr, operator]
    program = program_of(block.half(), torch.ones(1, 1, 2, 2).half() * 1e-3)
    simplify(program)
    assert all(value.isfinite().all() for value in program.module.buffers())
    assert "aten.mul.Tensor" in targets(program)
