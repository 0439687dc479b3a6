"""Python numbers that change from call to call, of any sign: operands of an engine, or sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.report.measure import fresh_call
from singlecard.report.verify import compare
from singlecard.session import Session

_LINEAR = torch.nn.Linear(8, 8)


@torch.no_grad()
def check_numbers(
    function: Callable[..., Any], numbers: Sequence[Any], build: bool = False
) -> Session:
    """Assert that one graph, wholly an engine's, answers all numbers, in order."""
    options = {"min_block_size": 1, "strict": True}
    session = Session(Options.parse({**options, "targets": "sm89"}), "reference", build)

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(session, graph, examples)

    compiled = torch.compile(fresh_call(function), backend=backend, dynamic=True)
    x = torch.randn(8, 8)
    for number in numbers:
        result = compare(compiled(x, number), function(x, number))
        assert result.mismatch is None, f"{number}: {result.mismatch}"
        assert result.max_rel_error <= 1e-5, f"{number}: {result}"
    (graph,) = session.graphs
    assert graph.lowered_ops == graph.ops and graph.bindings
    return session


def mixed(x: torch.Tensor, k: int) -> Any:
    whole = (8 * x).long()
    return whole * k, whole.int() + k, whole // 3 - k, x.clamp(max=k), x > k, k / (x.abs() + 1)


_OPERANDS: dict[str, Callable[[torch.Tensor, int], Any]] = {
    "sum": lambda x, k: _LINEAR(x) + k,
    "product": lambda x, k: _LINEAR(x) * k,
    "quotient": lambda x, k: _LINEAR(x) / (k * k + 1),
    "expression": lambda x, k: _LINEAR(x) * (2 * k + 1) + x.shape[0] * k,
    "fill": lambda x, k: _LINEAR(x) + torch.full((8,), k),
    "triangles": lambda x, k: (_LINEAR(x).tril(k), x.triu(k)),
    "types": mixed,
}


@pytest.mark.parametrize("name", _OPERANDS)
def test_operand_of_any_sign(name: str) -> None:
    """A step count or an offset ended in an internal error, and the model in PyTorch."""
    check_numbers(_OPERANDS[name], (3, 981, -7, 12, 100_000), build=name == "triangles")


_PLACES: dict[str, tuple[Callable[[torch.Tensor, int], Any], Sequence[int]]] = {
    "rolled": (lambda x, k: _LINEAR(x).roll(k, 0), (3, -2, 0, 7, -100)),
    "rolled along two": (lambda x, k: _LINEAR(x).roll((k, -k), (0, 1)), (3, -2, 7)),
    "the first": (lambda x, k: _LINEAR(x)[:k] * 2, (3, 5, 2)),
    "the last": (lambda x, k: _LINEAR(x)[k:] * 2, (-3, -5, -2)),
    "one": (lambda x, k: _LINEAR(x)[k] * 2, (3, 0, 7)),
    "one from the end": (lambda x, k: _LINEAR(x)[k] * 2, (-3, -1, -8)),
    "padded or cut": (lambda x, k: F.pad(_LINEAR(x), (k, k)), (3, -2, 1)),
    "counted": (lambda x, k: _LINEAR(x)[0] + torch.arange(k)[:, None], (3, 9, 30)),
    "size and operand": (lambda x, k: (x.new_ones(k) + k).sum() + _LINEAR(x), (3, 9, 30)),
}


@pytest.mark.parametrize("name", _PLACES)
def test_place_or_size(name: str) -> None:
    """Zero, the first place, and what is counted from the end were beyond the engine's range."""
    function, numbers = _PLACES[name]
    session = check_numbers(function, numbers, build=name in ("rolled", "the last"))
    (binding,) = session.graphs[0].bindings
    extents = binding.extents.values()
    for number in numbers:  # else PyTorch answered
        for (name, item), profile in zip(binding.extents.items(), extents, strict=True):
            span = binding.profiles[name]
            assert span.smallest[0] <= number - item.less <= span.largest[0], (name, profile)


def test_floats() -> None:
    """The strength of a guidance is a number like any other."""
    check_numbers(lambda x, s: _LINEAR(x) * s + (1 - s) * x, (0.5, 7.5, -2.25))
