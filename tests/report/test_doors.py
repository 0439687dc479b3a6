"""Every door checks what it is given alike, before any work, and leads to the same engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import singlecard
from singlecard.axes import axes_from_text
from singlecard.errors import CalibrationError, OptionError
from singlecard.offline.fitting import compile_fitted
from singlecard.options import Options
from singlecard.report.keys import keys_of_model
from singlecard.report.model import Model
from singlecard.report.verify import compile_model

Door = Callable[..., Any]


@pytest.fixture(autouse=True)
def nothing_traced_before() -> None:
    torch._dynamo.reset()


def export(model: Any, args: Any, kwargs: Any = None, **rest: Any) -> Any:
    folder = Path(rest["options"]["cache_dir"]).parent
    return singlecard.export(model, args, kwargs, folder / "model.singlecard", **rest)


def build(model: Any, args: Any, kwargs: Any = None, *, options: Any, dynamic_shapes: Any) -> Any:
    return compile_model(model, args, kwargs, dynamic_shapes, options, "eager", None)


DOORS: dict[str, Door] = {
    "verify": singlecard.verify,
    "explain": singlecard.explain,
    "build": build,
    "export": export,
    "plan": lambda *args, **rest: singlecard.plan_memory(*args, card="8GiB", **rest),
    "cache explain": lambda model, args, kwargs=None, *, options, dynamic_shapes: keys_of_model(
        Model("m", model, args, kwargs or {}, dynamic_shapes), Options.parse(options)
    ),
}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), self.layer(y)


TWO = (torch.ones(3, 8), torch.ones(5, 8))

#: The same ranges, as they may be given to a door.
SAME: dict[str, dict[str, Any]] = {
    "by name": {"dynamic_shapes": {"x": {0: (2, 7)}, "y": {0: (2, 31)}}},
    "another order": {"dynamic_shapes": {"y": {0: (2, 31)}, "x": {0: (2, 7)}}},
    "Dims": {"dynamic_shapes": ({0: Dim("a", min=2, max=7)}, {0: Dim("b", min=2, max=31)})},
    "with opt": {"dynamic_shapes": {"x": {0: (2, 4, 7)}, "y": {0: "2:8:31"}}},
    "profiles": {"profiles": {"y": {0: (2, 8, 31)}, 0: {0: (2, 4, 7)}}},
}


def digests(found: Any) -> list[str]:
    return [engine.digest for engine in found.engines]


def test_the_same_ranges_give_the_same_engine(tmp_path: Path) -> None:
    """What is verified, explained or exported must be what is built, and what production finds."""
    torch.manual_seed(0)
    model = Two().eval()
    wanted: list[str] = []
    for number, given in enumerate(SAME.values()):
        options = {"targets": "sm89", "cache_dir": tmp_path / "cache", **given}
        shapes = options.pop("dynamic_shapes", None)
        for door in ("build", "verify", "explain", "export") if number in (0, 4) else ("build",):
            torch._dynamo.reset()
            before = singlecard.counters()
            found = DOORS[door](model, TWO, dynamic_shapes=shapes, options=options)
            counted = singlecard.counters() - before
            assert (counted.builds, counted.hits) == ((0, 1) if wanted else (1, 0)), (given, door)
            if door != "verify":  # whose report has no digests
                wanted = wanted or digests(found)
                assert digests(found) == wanted, (given, door)
    torch._dynamo.reset()
    shapes_of = axes_from_text(["x=2:4:7; y=2:8:31"])
    options = Options.parse({"targets": "sm89", "cache_dir": tmp_path / "cache"})
    assert digests(compile_fitted(Model("m", model, TWO), shapes_of, options, None)) == wanted
    compiled = torch.compile(
        model,
        backend="singlecard",
        options={
            **vars(options),
            "execution": "reference",
            **SAME["profiles"],
        },
    )
    args = (torch.ones(4, 8), torch.ones(9, 8))
    for tensor in args:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)
    before = singlecard.counters()
    with torch.no_grad():
        compiled(*args)
    counted = singlecard.counters() - before
    assert (counted.builds, counted.hits) == (0, 1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 8) * 2


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] <= 16 else x * 3


FOUR = torch.ones(4, 8)

REFUSED: dict[str, tuple[nn.Module, tuple[Any, ...], Any, str]] = {
    "a constant": (Constant(), (FOUR,), {"x": {0: (2, 8)}}, "let axis 0 of input x vary"),
    "one of two": (Sum(), (FOUR, FOUR), {"x": {0: (2, 8)}}, "axis 0 of y is 4 too"),
    "another code beyond": (Branch(), (FOUR,), {"x": {0: (2, 64)}}, "up to 16"),
    "no such input": (Sum(), (FOUR, FOUR), {"z": {0: (2, 8)}}, "did you mean|write one of these"),
    "no such axis": (Sum(), (FOUR, FOUR), {"x": {2: (2, 8)}}, "x has 2 axes, none is 2"),
    "outside": (Branch(), (FOUR,), {"x": {0: (8, 16)}}, "is 4 in the example, outside"),
    "one row": (Branch(), (FOUR[:1],), {"x": {0: (1, 16)}}, "PyTorch compiles as a constant"),
    "a tensor for a tuple": (Branch(), FOUR, None, r"write \(x,\)"),
    "dropout": (nn.Sequential(nn.Linear(8, 4), nn.Dropout()), (FOUR,), None, r"model\.eval\(\)"),
    "batch norm": (nn.BatchNorm1d(8), (FOUR,), None, r"model\.eval\(\)"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("door", ["verify", "explain", "build", "export", "plan"])
def test_what_cannot_be_is_refused_before_any_work(door: str, case: str, tmp_path: Path) -> None:
    """In the caller's names: PyTorch's own words speak of ``L['args'][0].size()[0]``."""
    model, args, shapes, words = REFUSED[case]
    options = {"targets": "sm89", "cache_dir": tmp_path / "cache"}
    before = singlecard.counters()
    with pytest.raises(OptionError, match=words):
        DOORS[door](model, args, dynamic_shapes=shapes, options=options)
    assert (singlecard.counters() - before).builds == 0
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".plan", ".singlecard")]


def test_inputs_of_one_length_need_one_range(tmp_path: Path) -> None:
    """Of two ranges one would be left out."""
    shapes = {"x": {0: (2, 8)}, "y": {0: (2, 31)}}
    with pytest.raises(OptionError, match="axis 0 of input x and axis 0 of input y are as long"):
        singlecard.verify(Sum(), (FOUR, FOUR), dynamic_shapes=shapes)
    report = singlecard.verify(
        Sum(), (FOUR, FOUR), dynamic_shapes={"x": {0: (2, 8)}, "y": {0: (2, 8)}}
    )
    assert report.engines == 1 and report.mismatch is None


def test_a_size_that_must_be_even_has_a_range() -> None:
    """PyTorch refuses a range of which its guards exclude a size; an engine serves the others."""

    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1) * 2

    report = singlecard.verify(Halves(), (torch.ones(4, 7),), dynamic_shapes={"x": {0: (2, 64)}})
    assert report.mismatch is None and report.relative_l2 == 0


def test_parts_that_are_the_same_in_both_modes_pass() -> None:
    """A model of linear layers needs no ``eval()``, and dropout of nothing drops nothing."""
    model = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.0), nn.LayerNorm(4), nn.ReLU())
    assert model.training
    assert singlecard.verify(model, (FOUR,)).relative_l2 < 1e-5


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, self.training)


def test_code_that_asks_for_the_mode_is_found() -> None:
    """Models from transformers have dropout without a module for it."""
    with pytest.raises(OptionError, match="the model is in training mode"):
        singlecard.verify(Own(), (FOUR,))
    model = Own()
    with pytest.raises(OptionError, match="in training mode"):
        singlecard.verify(lambda x: model(x), (FOUR,))
    part = nn.Sequential(nn.Linear(8, 8), Own()).eval()
    part[1].train()
    with pytest.raises(OptionError, match="the model's 1 is in training mode"):
        singlecard.explain(part, (FOUR,))
    with pytest.raises(CalibrationError, match="the model's 1 is in training mode"):
        singlecard.search_precision(part, [FOUR])


def test_lines_of_ours_are_not_the_users(tmp_path: Path) -> None:
    """The line to change is in the model."""
    report = singlecard.verify(torch.special.bessel_j0, (FOUR,), options={"cache_dir": tmp_path})
    assert report.fallback and not any("singlecard" in line for line in report.fallback_lines)
