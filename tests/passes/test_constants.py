"""What depends on weights alone is computed once; weights themselves are never copied."""

from __future__ import annotations

import torch
from torch import nn

from singlecard.passes import simplify
from tests.graphs import fired, program_of, simplified, targets


class Scaled(nn.Module):
    """A weight that is computed from two parameters, as weight normalization does."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(4, 4))
        self.length = nn.Parameter(torch.rand(4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.direction * (self.length / self.direction.norm(dim=1, keepdim=True))
        return x @ weight


def test_computed_weight_is_folded() -> None:
    """A user would pay for the same division of the same weights on every call."""
    program = simplified(Scaled(), torch.randn(2, 4))
    assert "fold_constants" in fired(program)
    assert len(targets(program)) == 1


def test_weight_is_not_copied() -> None:
    """A copy of each weight would double the memory of a compilation."""
    layer = nn.Linear(8, 8)
    program = simplified(layer, torch.randn(2, 8))
    kept = {value.data_ptr() for value in program.module.buffers()}
    assert kept == {layer.weight.data_ptr(), layer.bias.data_ptr()}


def test_random_numbers_are_not_folded() -> None:
    """Noise drawn once while compiling would be the same noise forever."""
    program = program_of(lambda x: x + torch.rand(3), torch.randn(3))
    simplify(program)
    assert any("rand" in target for target in targets(program))


def test_large_expansion_is_not_folded() -> None:
    """A table blown up from one number would be stored in every engine."""
    program = program_of(lambda x: x + torch.zeros(1024, 1024), torch.randn(1, 1024))
    simplify(program)
    assert all(value.numel() < 1024 * 1024 for value in program.module.buffers())


def test_equal_calls_merge_and_unequal_do_not() -> None:
    """True, 1 and 1.0 are equal to Python; a mask of truth values is not a count."""
    program = simplified(lambda x: (x + 1) * (x + 1) + (x + 2), torch.randn(3))
    assert targets(program).count("aten.add.Tensor") == 3
    program = program_of(
        lambda x: (torch.full_like(x, 1, dtype=torch.float64), torch.full_like(x, True)),
        torch.randn(3),
    )
    simplify(program)
    first, second = program.outputs
    assert first.meta["val"].dtype == torch.float64
    assert second.meta["val"].dtype == torch.float32
