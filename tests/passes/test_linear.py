"""Products that AOTAutograd or the user wrote flat become linear layers again."""

from __future__ import annotations

import torch
from torch import nn

from tests.graphs import fired, simplified, targets


class Flat(nn.Module):
    """A linear layer as some front ends write it: flattened, with a transposed weight."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 4))
        self.bias = nn.Parameter(torch.randn(5)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.view(-1, 4)
        product = (
            flat.mm(self.weight.t())
            if self.bias is None
            else torch.addmm(self.bias, flat, self.weight.t())
        )
        return product.view(2, 3, 5)


def test_flattened_product_is_a_linear_layer() -> None:
    """Views between products keep the builder from joining and fusing them."""
    for bias in (True, False):
        program = simplified(Flat(bias), torch.randn(2, 3, 4))
        assert targets(program) == ["aten.linear.default"]


class Conv1D(nn.Module):
    """GPT-2's projection: a weight as [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, 4), self.weight).view(2, 3, 5)


def test_untransposed_weight_is_matmul_and_add() -> None:
    """GPT-2 keeps its weights as [in, out]: taken for [out, in] its answers would be noise."""
    program = simplified(Conv1D(), torch.randn(2, 3, 4))
    assert targets(program) == ["aten.matmul.default", "aten.add.Tensor"]


def test_view_that_mixes_axes_stays() -> None:
    """A view that regroups the features is no batch axis; dropped, other numbers are multiplied."""

    class Mixed(Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(-1, 4).mm(self.weight.t()).view(2, 2, 15)

    program = simplified(Mixed(), torch.randn(2, 2, 12))
    assert len([target for target in targets(program) if "view" in target]) == 2


def test_scaled_addmm_stays() -> None:
    """addmm with beta or alpha is no linear layer: the factors would be lost."""

    class Scaled(Flat):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert self.bias is not None
            return torch.addmm(self.bias, x, self.weight.t(), beta=2, alpha=3)

    program = simplified(Scaled(), torch.randn(3, 4))
    assert "unflatten_product" not in fired(program)


def test_product_used_flat_too() -> None:
    """A second user of the flat product still needs it."""

    class Twice(Flat):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            product = x.view(-1, 4).mm(self.weight.t())
            return product.view(2, 3, 5) + 1, product.sum(0)

    simplified(Twice(), torch.randn(2, 3, 4))
