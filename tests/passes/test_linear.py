"""Products that AOTAutograd or the user wrote flat become linear layers again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import singlecard
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


class Shared(nn.Module):
    """A batch of products with one matrix, in the spelling given."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.weight = nn.Parameter(torch.randn(64, 64), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if self.spelling == "linear":
            return torch.nn.functional.linear(x.transpose(0, 1), weight)
        if self.spelling == "right":
            return x.transpose(0, 1) @ weight
        if self.spelling == "left":
            return weight @ x.transpose(-1, -2)
        return torch.bmm(x, weight[None].expand(x.shape[0], 64, 64))


@pytest.mark.parametrize("spelling", ["linear", "right", "left", "bmm"])
def test_a_matrix_for_all_of_a_batch_is_stored_once(spelling: str) -> None:
    """Stored for each row of the batch, the weights of attention grow with the prompt's length."""
    model, x = Shared(spelling).eval(), torch.randn(8, 8, 64)
    report = singlecard.verify(model, (x,), options={"targets": "sm89"})
    assert (report.engines, report.coverage) == (1, 1.0)
    assert report.relative_l2 < 1e-6
    assert sum(plan.weights_bytes for plan in report.plans) < 1.5 * model.weight.numel() * 4


def test_matrices_of_a_batch_stay_its_own() -> None:
    """Taken for one matrix, all samples would be multiplied with the first one's."""

    class Own(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.bmm(x, y.expand(4, 5, 6).reshape(4, 6, 5))

    program = simplified(Own(), torch.randn(4, 3, 6), torch.randn(4, 5, 6))
    assert "aten.bmm.default" in targets(program)
