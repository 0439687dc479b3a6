"""One op that TensorRT or a converter refuses stays in PyTorch alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard import VerifyReport, blame, session
from singlecard.lowering import lower
from singlecard.lowering.table import table
from singlecard.network.net import Net
from tests.lowering.check import check as check_lowering

aten = torch.ops.aten

X = torch.linspace(-1, 1, 32).reshape(4, 8)


class Net4(nn.Module):
    """Linear layers, and among them an op that is refused in these tests, as often as asked."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(times + 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.layers
        x = first(x).relu()
        for layer in rest:
            x = layer(torch.sinh(x)) + 1
        return x


Converter = Callable[[Net, Any], Any]


@pytest.fixture
def converters(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Converter]:
    """Converters that stand for the declared ones, by op."""
    changed: dict[Any, Converter] = {}

    def changed_table() -> Any:
        known = dict(table())
        for target, function in changed.items():
            known[target] = dataclasses.replace(known[target], lower=function)
        return known

    monkeypatch.setattr(lower, "table", changed_table)
    return changed


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"


def verify(model: nn.Module, folder: Path, x: Tensor = X, **options: Any) -> VerifyReport:
    before = singlecard.counters()
    asked = {"targets": "sm89", "min_block_size": 1, "cache_dir": folder, **options}
    report = singlecard.verify(model.eval(), (x,), options=asked)
    assert (singlecard.counters() - before).evaluations >= report.engines > 0
    assert report.relative_l2 < 1e-5
    return report


def refused_by_the_builder(net: Net, x: Any) -> Any:
    """A normalization whose scale does not fit its groups: a layer that does not build."""
    x = net.reshape(x, [1, 4, 8])
    one, zero = net.scalar(1.0, x.dtype, 3), net.scalar(0.0, x.dtype, 3)
    return net.reshape(net.normalization(x, one, zero, [2], 1e-5, 2), [4, 8])


def raising(net: Net, x: Any) -> Any:
    raise KeyError("a fault")


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("converter", [refused_by_the_builder, raising])
def test_the_op_alone_stays(
    converter: Converter, times: int, converters: dict[Any, Converter], folder: Path
) -> None:
    """Without it, most of a model would run in PyTorch, and the report blame all of its ops."""
    converters[aten.sinh.default] = converter
    before = singlecard.counters()
    report = verify(Net4(times), folder)
    assert [op for op, _ in report.fallback] == ["aten.sinh"] * times
    assert report.engines == times + 1
    # Ops that are alike are refused together: one build fails, however often the op stands there.
    counted = singlecard.counters() - before
    assert counted.build_failures == (converter is refused_by_the_builder)


def test_a_fault_of_a_converter_is_worth_a_report(
    converters: dict[Any, Converter], folder: Path
) -> None:
    converters[aten.sinh.default] = raising
    ((op, reason),) = verify(Net4(), folder).fallback
    assert op == "aten.sinh" and "KeyError" in reason and "please report this" in reason


def test_what_was_refused_is_remembered(converters: dict[Any, Converter], folder: Path) -> None:
    """Each start would build for minutes what the one before found out not to build, and
    build="never" would find none of the engines that are there."""
    converters[aten.sinh.default] = refused_by_the_builder
    first = verify(Net4(), folder)
    before = singlecard.counters()
    for options in ({}, {"build": "never"}):
        again = verify(Net4(), folder, **options)
        assert again.fallback == first.fallback and again.engines == 2
    counted = singlecard.counters() - before
    assert (counted.builds, counted.build_failures, counted.hits) == (0, 0, 4)


def test_words_that_name_no_layer(
    monkeypatch: pytest.MonkeyPatch, converters: dict[Any, Converter], folder: Path
) -> None:
    """Some refusals name nothing, or a whole region: halving finds the op."""
    converters[aten.sinh.default] = refused_by_the_builder
    monkeypatch.setattr(session, "named_nodes", lambda lowered, words: [])
    report = verify(Net4(2), folder)
    assert [op for op, _ in report.fallback] == ["aten.sinh"] * 2
    assert report.engines == 3


def test_the_search_is_bounded(
    monkeypatch: pytest.MonkeyPatch, converters: dict[Any, Converter], folder: Path
) -> None:
    """A segment of a thousand ops must not be built for hours to find one."""
    converters[aten.sinh.default] = refused_by_the_builder
    monkeypatch.setattr(session, "named_nodes", lambda lowered, words: [])
    tried = []

    def trial(*args: Any) -> Any:
        tried.append(args)

    monkeypatch.setattr(session, "trial_report", trial)
    monkeypatch.setattr(session, "Budget", lambda: blame.Budget(3))
    report = singlecard.verify(
        Net4(), (X,), options={"targets": "sm89", "min_block_size": 1, "cache_dir": folder}
    )
    assert len(tried) == 2 and report.engines == 0
    assert all("not found" in reason for _, reason in report.fallback)


def test_names_that_begin_others(converters: dict[Any, Converter]) -> None:
    """`add` would be blamed for what `add.1` did."""

    class Layers:
        def makers_by_layer(self) -> dict[str, Any]:
            return {"a/add": "first", "a/add.1": "second", "b/mul": "third"}

    nodes: Any = blame.named_nodes(Layers(), "Error Code 4 (a/add.1: too large)")  # type: ignore[arg-type]
    assert nodes == ["second"]


class Deep(nn.Module):
    """Nine axes between layers of eight: an op on each element, and views."""

    def forward(self, x: Tensor) -> Tensor:
        y = (x.relu()[None] + 1).unsqueeze(-1) * 2
        return torch.exp(y.reshape(4, -1))


class High(nn.Module):
    """A sum over nine axes has no other form."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(x).exp()
        return self.last(y.reshape(2, 2, 2, 2, 2, 1, 1, 1, 1).flip(0).reshape(4, 8))


def test_nine_axes_are_worked_on_where_there_are_fewer(folder: Path) -> None:
    """A window of windows, or one axis more by a batch that vmap adds."""
    report = verify(Deep(), folder, torch.randn(2, 1, 2, 1, 2, 1, 2, 1))
    assert report.coverage == 1 and report.engines == 1


def test_nine_axes_stay_in_pytorch_with_the_limit(folder: Path) -> None:
    report = verify(High(), folder)
    assert report.engines == 2 and len(report.fallback) == 3
    assert all("9 dimensions" in reason and "at most 8" in reason for _, reason in report.fallback)


@pytest.mark.parametrize("times", [(2, 2, 2, 2, 2), (3, 1, 2, 1, 2, 1, 2, 2)])
def test_repeats_of_many_axes(times: tuple[int, ...]) -> None:
    check_lowering(lambda x: x.repeat(times) + 1, torch.randn(2, 3, 2, 1, 2), build=True)


def test_group_norm_without_weights() -> None:
    check_lowering(lambda x: nn.functional.group_norm(x, 2), torch.randn(2, 6, 4, 4), build=True)
