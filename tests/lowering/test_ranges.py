"""The ranges of sizes: all that a model asks holds at each of their three ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F

from singlecard.capture.program import Program
from singlecard.capture.spans import Triple
from singlecard.capture.symbols import is_number, symbols_in
from singlecard.errors import LoweringError
from singlecard.lowering.ranges import choose_ranges, guards_of, ranges_around
from tests.graphs import program_of


def sizes_of(program: Program) -> tuple[Any, dict[str, sympy.Symbol]]:
    """Return PyTorch's environment, and symbols by ``input.axis``, counted from 0."""
    environment: Any = None
    found: dict[str, sympy.Symbol] = {}
    tensors = [node.meta["val"] for node in program.placeholders]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    for place, value in enumerate(tensors):
        for axis, size in enumerate(value.shape):
            if is_number(size):
                environment = size.node.shape_env
                symbols = list(symbols_in(size))
                if len(symbols) == 1:
                    found[f"{place}.{axis}"] = symbols[0]
    return environment, found


def violated(environment: Any, ranges: dict[sympy.Symbol, Triple]) -> list[str]:
    """Return the guards that do not hold at an end, asked of sympy."""
    return [
        f"{guard} at {['smallest', 'usual', 'largest'][at]}"
        for at in range(3)
        for guard in guards_of(environment)
        if guard.free_symbols <= ranges.keys()
        and guard.xreplace({key: sympy.Integer(ranges[key][at]) for key in guard.free_symbols})
        is not sympy.true
    ]


_LINEAR = torch.nn.Linear(8, 8)
_TABLE = torch.nn.Parameter(torch.randn(1, 1024, 8))


def merged(x: torch.Tensor) -> torch.Tensor:
    """Neighbours of a picture in one row: heights and widths must be even."""
    return torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1) * 2


def windowed(x: torch.Tensor) -> torch.Tensor:
    rows = x.unflatten(2, (-1, 7)).unflatten(1, (-1, 4))
    return rows.transpose(2, 3).flatten(3) * 2


def placed(x: torch.Tensor) -> torch.Tensor:
    """Positions of a table: height times width is 1024 at most."""
    return x.flatten(1, 2) + _TABLE[:, : x.shape[1] * x.shape[2]]


_ASKING: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "nothing": (lambda x: x * 2, ((3, 5, 7, 8),)),
    "pairs": (lambda x: torch.cat((x * 2).chunk(2), 1), ((6, 5, 8),)),
    "neighbours": (merged, ((3, 8, 6, 8),)),
    "windows": (windowed, ((3, 8, 14, 8),)),
    "unshuffled": (lambda x: F.pixel_unshuffle(x, 4) * 2, ((2, 3, 12, 8),)),
    "a table's positions": (placed, ((3, 5, 7, 8),)),
    "one less than another": (lambda x, y: x + y[:, : x.shape[1]], ((3, 5, 8), (3, 9, 8))),
    "as long as two": (lambda x, y, z: torch.cat([x, y], 1) + z, ((3, 5), (3, 4), (3, 9))),
    "a branch": (lambda x: x * 2 if x.shape[0] * x.shape[1] < 500 else x, ((3, 9, 8),)),
    "the other branch": (lambda x: x if x.shape[0] * x.shape[1] < 500 else x * 2, ((30, 90),)),
    "all but one length": (lambda x: x if x.shape[0] == 64 else x * 2, ((30, 90),)),
    "halves": (lambda x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2) + x, ((1, 2, 8, 12),)),
}


@pytest.mark.parametrize("name", _ASKING)
def test_each_end_meets_what_the_model_asks(name: str) -> None:
    """TensorRT refuses a profile with one odd height, and the whole model ran in PyTorch."""
    function, shapes = _ASKING[name]
    program = program_of(function, *(torch.randn(*shape) for shape in shapes), dynamic=True)
    environment, symbols = sizes_of(program)
    ranges = choose_ranges(symbols.values(), environment, {}, {})
    assert violated(environment, ranges) == []
    for symbol, (low, usual, high) in ranges.items():
        hint = environment.backed_var_to_val[symbol]
        assert low <= usual <= high and low <= hint <= high, "a call like the example is outside"
    for share in (0.5, 0):
        narrower = ranges_around(ranges, environment, share)
        assert narrower is not None and violated(environment, narrower) == []


@pytest.mark.parametrize("name", ["nothing", "neighbours", "windows", "unshuffled", "halves"])
def test_ranges_do_not_depend_on_the_example(name: str) -> None:
    """What CI built for one picture would not be found for another."""
    function, ((batch, *rest),) = _ASKING[name]
    found = set()
    for times in (1, 5):
        x = torch.randn(batch, *rest[:-1], rest[-1])
        x = x.repeat(1, *(times for _ in rest[:-1]), 1) if x.ndim == 4 else x
        environment, symbols = sizes_of(program_of(function, x, dynamic=True))
        ranges = choose_ranges(symbols.values(), environment, {}, {})
        found.add(tuple(ranges[symbols[f"0.{axis}"]] for axis in (1, 2)))
    assert len(found) == 1


def test_ends_are_as_far_as_they_can_be() -> None:
    """A picture of the largest size that the model takes would run in PyTorch."""
    environment, symbols = sizes_of(program_of(merged, torch.randn(3, 8, 6, 8), dynamic=True))
    ranges = choose_ranges(symbols.values(), environment, {}, {})
    assert ranges[symbols["0.1"]] == ranges[symbols["0.2"]] == (4, 128, 4096)
    assert ranges[symbols["0.0"]] == (2, 91, 4096)


def test_what_a_product_leaves_is_shared() -> None:
    """Tables of 32 x 32 positions are for pictures of many forms, not for long and low ones."""
    x = torch.randn(3, 5, 7, 8)
    environment, symbols = sizes_of(program_of(placed, x, dynamic=True))
    ranges = choose_ranges(symbols.values(), environment, {}, {})
    heights, widths = ranges[symbols["0.1"]], ranges[symbols["0.2"]]
    assert 900 <= heights[2] * widths[2] <= 1024
    assert 16 <= heights[2] <= 64 and 16 <= widths[2] <= 64


def test_picture_beyond_the_shared_range_is_in_one_of_its_own() -> None:
    """A wide picture is a call like any other, though the ranges for all do not hold it."""
    x = torch.randn(3, 2, 300, 8)
    environment, symbols = sizes_of(program_of(placed, x, dynamic=True))
    ranges = choose_ranges(symbols.values(), environment, {}, {})
    assert violated(environment, ranges) == []
    assert ranges[symbols["0.2"]][2] >= 300


def test_range_of_the_user_is_narrowed_and_said(recwarn: pytest.WarningsRecorder) -> None:
    """Odd ends of a range that was asked for would leave the model to PyTorch, without a word."""
    environment, symbols = sizes_of(program_of(merged, torch.randn(3, 8, 6, 8), dynamic=True))
    spans = {symbols["0.1"]: (5, 33, 65), symbols["0.2"]: (4, 32, 64)}
    ranges = choose_ranges(symbols.values(), environment, spans, {})
    low, usual, high = ranges[symbols["0.1"]]
    assert (low, high) == (6, 64) and usual in (32, 34)
    assert ranges[symbols["0.2"]] == (4, 32, 64)
    (told,) = [str(item.message) for item in recwarn if "was given" in str(item.message)]
    assert "5 to 65 (usually 33)" in told and "6 to 64" in told


def test_range_without_a_size_that_the_model_takes() -> None:
    """It says so, instead of what TensorRT says of a concatenation."""
    environment, symbols = sizes_of(program_of(merged, torch.randn(3, 8, 6, 8), dynamic=True))
    with pytest.raises(LoweringError, match="no sizes from .*meet what the model asks"):
        choose_ranges(symbols.values(), environment, {symbols["0.1"]: (5, 5, 5)}, {})


def test_choice_of_a_kernel_cuts_no_range() -> None:
    """On CPUs PyTorch asks for the size of a picture to choose a kernel: an engine does not care.

    Built on one, it would not be found on a card, and there would be two for one model.
    """
    conv = torch.nn.Conv2d(3, 4, 3)
    environment, symbols = sizes_of(program_of(conv, torch.randn(1, 3, 20, 24), dynamic=True))
    ranges = choose_ranges(symbols.values(), environment, {}, {})
    assert {ranges[symbols[name]][2] for name in ("0.2", "0.3")} == {4096}
