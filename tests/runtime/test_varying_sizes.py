"""Modules put together at random from parts that read sizes in between, at several sizes."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch import fx

from singlecard.backend import compile_in
from singlecard.background import Pending, wait_for_builds
from singlecard.capture.aot import capture
from singlecard.capture.program import Program
from singlecard.capture.symbols import is_number, symbols_in
from singlecard.lowering.ranges import choose_ranges, guards_of
from singlecard.options import Options
from singlecard.report.measure import fresh_call
from singlecard.report.verify import compare
from singlecard.runtime.executable import Executable
from singlecard.session import Session
from tests.capture.test_symbols import check_order

Part = Callable[[torch.Tensor], torch.Tensor]

_FILTER = torch.nn.Parameter(torch.randn(4, 4, 3, 3) / 6, requires_grad=False)

#: Parts that take and give images of four channels, whatever their size.
_PARTS: dict[str, Part] = {
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "strided convolution": lambda x: F.conv2d(x, _FILTER, stride=2, padding=1),
    "pool": lambda x: F.max_pool2d(x, 2),
    "join": lambda x: torch.cat([x, x * 2], 3),
    "every other": lambda x: x[:, :, ::2],
    "the rest of a view": lambda x: x.reshape(x.shape[0], 4, -1).relu().view(x.shape),
    "flatten and back": lambda x: x.flatten(2).mT.mT.unflatten(2, x.shape[2:]),
    "double": lambda x: F.interpolate(x, scale_factor=2),
    "as large as another": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:]) + x,
    "halves": lambda x: torch.cat(torch.cat([x, x], 2).chunk(2, 2), 3),
    "windows": lambda x: x.unfold(3, 2, 1).flatten(3),
    "foreign": lambda x: x.sigmoid(),
}


def composed(seed: int) -> tuple[str, Part]:
    """Return a function of three parts, one of which reads a size, and how it is made."""
    names = random.Random(seed).sample(sorted(_PARTS), 3)

    def function(x: torch.Tensor) -> torch.Tensor:
        for name in names:
            x = _PARTS[name](x)
        return x.flatten(1) * x.shape[2]

    return ", ".join(names), function


def check_ranges(program: Program) -> None:
    """Assert that the ends of the ranges meet every guard, as sympy reads it."""
    sizes = [size for node in program.placeholders for size in _sizes(node) if is_number(size)]
    if not sizes:
        return
    environment = sizes[0].node.shape_env
    ranges = choose_ranges(symbols_in(sizes), environment, {}, {})
    for guard in guards_of(environment):
        if guard.free_symbols <= ranges.keys():
            for at in range(3):
                end = {key: sympy.Integer(ranges[key][at]) for key in guard.free_symbols}
                assert guard.xreplace(end) == sympy.true, (guard, end)


def _sizes(node: fx.Node) -> Sequence[Any]:
    value = node.meta["val"]
    return value.shape if isinstance(value, torch.Tensor) else [value]


_SHAPES = ((2, 4, 16, 24), (3, 4, 20, 16), (5, 4, 28, 36))


@pytest.mark.parametrize("build", ["now", "never", "background"])
@pytest.mark.parametrize("seed", range(4))
@torch.no_grad()
def test_answers_at_all_sizes(
    seed: int, build: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Image models meet a second resolution: sizes in between, odd ends and parts in PyTorch."""
    names, function = composed(seed)
    compile_program, found = Session.compile, []

    def compile_and_look(session: Session, program: Program, spans: Any = None) -> Executable:
        check_ranges(program)
        executable = compile_program(session, program, spans)
        check_order(executable.wiring)
        found.append(executable)
        return executable

    monkeypatch.setattr(Session, "compile", compile_and_look)
    asked = {"targets": "sm89", "cache_dir": str(tmp_path), "exclude_ops": ["aten.sigmoid"]}
    options = Options.parse({"min_block_size": 1, "build": build, **asked})
    session = Session(options, "reference", True)

    later = functools.partial(Pending, compile_program=session.compile)

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        if build == "background":  # as it is on a card, where PyTorch answers meanwhile
            return capture(graph, examples, later)
        return compile_in(session, graph, examples)

    compiled = torch.compile(fresh_call(function), backend=backend, dynamic=True)
    for shape in _SHAPES:
        x = torch.randn(shape)
        result = compare(compiled(x), function(x))
        assert result.mismatch is None, f"{names}: {result.mismatch}"
        assert result.max_rel_error <= 1e-4, f"{names}: {result}"
        wait_for_builds()
    assert found, "nothing was compiled"
    if "foreign" not in names and build != "never":  # a size that is read in between cuts a graph
        assert all(len(executable.wiring.steps) == 1 for executable in found), names
    if build != "never":
        assert any(graph.engines for graph in session.graphs), f"{names}: no engine was built"
