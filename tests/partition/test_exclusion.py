"""What the user names stays in PyTorch, and only that."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import singlecard
from singlecard.errors import OptionError
from singlecard.report.verify import VerifyReport


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self.norm(self.linear(x)))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Part() for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.softmax(x, -1)


def report(**options: object) -> VerifyReport:
    torch.manual_seed(0)
    model, x = Whole().eval(), torch.randn(2, 8)
    found = singlecard.verify(model, (x,), options={"min_block_size": 1, **options})
    assert found.relative_l2 < 1e-5
    return found


@pytest.mark.parametrize("name", ["aten.gelu", "aten.gelu.default"])
def test_op_stays_by_packet_or_overload(name: str) -> None:
    """Somebody who suspects one op must be able to take it out without changing the model."""
    found = report(exclude_ops=[name])
    assert {op for op, _ in found.fallback} == {"aten.gelu"}
    assert all("exclude_ops" in reason for _, reason in found.fallback)


def test_attention_goes_by_pytorchs_name() -> None:
    """Nobody knows what we call it inside."""
    q = torch.randn(1, 2, 4, 8)
    found = singlecard.verify(
        lambda q: F.scaled_dot_product_attention(q, q, q) + 1,
        (q,),
        options={"exclude_ops": "aten.scaled_dot_product_attention", "min_block_size": 1},
    )
    assert {op for op, _ in found.fallback} == {"singlecard.attention"}


def test_module_stays_with_all_that_lies_in_it() -> None:
    """Layer 1 is not layer 10 or 11, and what lies in it is its own."""
    found = report(exclude_modules=["layers.1"])
    assert len(found.fallback) == 3
    assert all("in layers.1" in reason for _, reason in found.fallback)


def test_pattern_names_many() -> None:
    """The norms of all layers, in one word."""
    found = report(exclude_modules=["layers.*.norm"])
    assert {op for op, _ in found.fallback} == {"aten.native_layer_norm"}
    assert len(found.fallback) == 12


def test_excluded_part_keeps_its_precision() -> None:
    """A module is excluded because it needs FP32: computing it in FP16 in PyTorch is no help."""

    class Cube(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * 60000 * 60000).sqrt()

    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), Cube(), nn.Linear(8, 8)).eval()
    options = {"precision": "fp16", "exclude_modules": ["2"], "min_block_size": 1}
    found = singlecard.verify(model, (torch.randn(2, 8),), options=options)
    assert found.relative_l2 < 5e-3


def test_nothing_matches_nothing_stays() -> None:
    """A name that this model does not have changes nothing."""
    assert report(exclude_ops=["aten.cos"], exclude_modules=["decoder"]).coverage == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"exclude_ops": ["aten.sofmax"]}, "did you mean 'aten.softmax'"),
        ({"exclude_ops": ["aten.softmax.nonsense"]}, "no op of PyTorch"),
        ({"exclude_ops": [7]}, "list of names"),
        ({"exclude_modules": 7}, "list of names"),
        ({"exclude_modules": [""]}, "list of names"),
    ],
)
def test_bad_names_are_refused_at_the_door(options: dict[str, object], words: str) -> None:
    """A misspelt op would stay in the engine, and the user would look elsewhere."""
    with pytest.raises(OptionError, match=words):
        report(**options)
