"""Names in options that nothing of a model has are said; those that something has are not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import singlecard
from singlecard.backend import compile_graph
from singlecard.warning import warn_once


@pytest.fixture(autouse=True)
def nothing_said_before() -> None:
    warn_once.cache_clear()
    torch._dynamo.reset()


class Block(nn.Module):
    def __init__(self, breaks: bool) -> None:
        super().__init__()
        self.lin, self.drop, self.breaks = nn.Linear(8, 8), nn.Dropout(), breaks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lin(x)
        if self.breaks:
            torch._dynamo.graph_break()
        return self.drop(torch.softmax(x, -1))


class Model(nn.Module):
    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(False), Block(breaks), Block(False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.blocks[2](self.blocks[1](self.blocks[0](x))))


class Looped(Model):
    """Of a loop with a graph break in it Dynamo compiles the blocks alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def said(run: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as seen, torch.no_grad():
        warnings.simplefilter("always")
        run()
    ours = [item for item in seen if issubclass(item.category, singlecard.SinglecardWarning)]
    return [str(item.message) for item in ours if "option" in str(item.message)]


def compiled(model: Callable[..., Any], **options: Any) -> list[str]:
    given = {"execution": "reference", "precision": "fp16", "min_block_size": 1, **options}
    run = torch.compile(model, backend=compile_graph, options=given)
    return said(lambda: run(torch.randn(2, 8)))


WRONG = {
    "a module": ({"exclude_modules": ["encoder.layer.3"]}, "it has blocks"),
    "a module, nearly": ({"exclude_modules": ["block.1"]}, "did you mean 'blocks.1'?"),
    "a pattern": ({"exclude_modules": ["*.norm"]}, "which no module of Model matches"),
    "an op": ({"exclude_ops": ["aten.sigmoid"]}, "which no op of Model is"),
    "a module in FP32": ({"keep_fp32": ["blocks.7"]}, "did you mean 'blocks."),
    "an op in FP32": ({"keep_fp32": ["blocks.1.lin:linea"]}, "did you mean 'blocks.1.lin:linear'?"),
    "an op of no module": ({"keep_fp32": ["head:linear"]}, "keep_fp32 names 'head:linear'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_name_that_nothing_has_is_said(case: str) -> None:
    """What should have stayed in FP32 does not, and nobody knows."""
    options, words = WRONG[case]
    (sentence,) = compiled(Model().eval(), **options)
    assert sentence.startswith(f"option {next(iter(options))} names") and words in sentence


@pytest.mark.parametrize("case", ["a module", "an op", "an op in FP32"])
def test_strict_raises(case: str) -> None:
    """``strict=True`` leaves nothing to be read in a log."""
    with pytest.raises(Exception, match="option .* names") as refused:
        compiled(Model().eval(), strict=True, **WRONG[case][0])
    assert isinstance(refused.value.inner_exception, singlecard.OptionError)  # type: ignore[attr-defined]


RIGHT: list[dict[str, Any]] = [
    {"exclude_modules": ["blocks.1", "blocks.*.lin", "*"]},
    {"exclude_modules": ["blocks.0.drop"]},  # a module without ops is there all the same
    {"exclude_ops": ["aten.softmax", "aten.relu.default"]},
    {"keep_fp32": ["blocks.2", "blocks", "blocks.0.lin:linear", "blocks.1:_softmax"]},
]


@pytest.mark.parametrize("options", RIGHT, ids=str)
@pytest.mark.parametrize("breaks", [False, True])
def test_names_that_something_has_are_not(options: dict[str, Any], breaks: bool) -> None:
    """A warning without a cause teaches people not to read them; graph breaks split a model."""
    assert compiled(Model(breaks).eval(), **options) == []


def test_a_function_of_a_model() -> None:
    """What a function closes over is its model."""
    model = Model().eval()
    assert compiled(lambda x: model(x), exclude_modules=["blocks.1"]) == []
    assert len(compiled(lambda x: model(x) * 2, exclude_modules=["block.1"])) == 1


def test_modules_of_a_model_that_is_cut_are_asked() -> None:
    """A pattern of modules is wrong whatever the graphs are."""
    for kind in (Model, Looped):
        torch._dynamo.reset()
        warn_once.cache_clear()
        assert len(compiled(kind(breaks=True).eval(), exclude_modules=["block.1"])) == 1
        assert compiled(kind(breaks=True).eval(), exclude_modules=["blocks.1"]) == []


def test_said_with_a_full_cache_too(tmp_path: Any) -> None:
    """The second start is the one whose log is read."""
    options = {"targets": "sm89", "cache_dir": tmp_path, "exclude_ops": ["aten.sigmoid"]}
    for _ in range(2):
        torch._dynamo.reset()
        warn_once.cache_clear()
        assert len(compiled(nn.Linear(8, 4).eval(), **options)) == 1


@pytest.mark.parametrize("breaks", [False, True])
def test_doors_tell_it(breaks: bool) -> None:
    """A check of accuracy that kept nothing in FP32 checks another model."""
    options = {"exclude_modules": ["block.1"], "exclude_ops": ["aten.sigmoid", "aten.relu"]}
    model, x = Model(breaks).eval(), torch.randn(2, 8)
    found = said(lambda: singlecard.verify(model, (x,), options=options))
    assert [text.split()[1] for text in found] == ["exclude_modules", "exclude_ops"]
    assert "aten.sigmoid" in found[1]
