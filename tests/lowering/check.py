"""A function of tensors through the real pipeline, without Dynamo: captured, lowered, compared.

Dynamo takes most of the time of a test and changes nothing for a graph of a few calls. Tensors that
are ``torch.nn.Parameter`` become constants of the network, as the weights of a model do.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

import singlecard
from singlecard.backend import compile_in
from singlecard.capture.aot import capture
from singlecard.options import Options
from singlecard.report.measure import fresh_call
from singlecard.report.verify import Comparison, compare
from singlecard.session import Graph, Session


@dataclass(frozen=True)
class Checked:
    """What became of a function.

    Attributes:
        graph: segments, engines and fallback.
        comparison: how far the answers are from eager PyTorch's.
    """

    graph: Graph
    comparison: Comparison

    @property
    def reasons(self) -> str:
        return "; ".join(item.reason for item in self.graph.fallback)


def check(
    function: Callable[..., Any],
    *inputs: torch.Tensor,
    build: bool = False,
    tolerance: float = 1e-5,
) -> Checked:
    """Assert that all of a function is lowered, and right; ``build`` also builds the engine."""
    found = run(function, *inputs, build=build)
    assert not found.graph.fallback, found.reasons
    assert found.graph.ops, "nothing was captured"
    assert found.comparison.mismatch is None, found.comparison.mismatch
    assert found.comparison.max_rel_error <= tolerance, found.comparison
    return found


def refuse(function: Callable[..., Any], *inputs: torch.Tensor) -> str:
    """Assert that something is left to PyTorch, whose answer comes back; return the reasons."""
    found = run(function, *inputs)
    assert found.graph.fallback, "all of it was lowered"
    assert found.comparison.mismatch is None, found.comparison.mismatch
    assert found.comparison.max_rel_error <= 1e-5, found.comparison
    return found.reasons


@torch.no_grad()
def run(
    function: Callable[..., Any],
    *inputs: torch.Tensor,
    build: bool = False,
    keep: list[Any] | None = None,
) -> Checked:
    """Send a function through the pipeline and compare its answers with eager PyTorch's.

    Its answer is put into ``keep``, where that is given.
    """
    structure: list[pytree.TreeSpec] = []

    def flat(*tensors: torch.Tensor) -> list[Any]:
        leaves, spec = pytree.tree_flatten(function(*tensors))
        structure[:] = [spec]
        return leaves

    graph = fx.Graph()
    places = tuple(graph.placeholder(f"input_{place}") for place in range(len(inputs)))
    graph.output(graph.call_function(flat, places))
    session = Session(Options.parse({"cache_dir": _cache()}), "reference", build)
    compiled = capture(fx.GraphModule({}, graph), _copies(inputs), session.compile)
    before = singlecard.counters().evaluations
    got = pytree.tree_unflatten(list(compiled(*_copies(inputs))), structure[0])
    (result,) = session.graphs
    networks = sum(segment.lowered for segment in result.partition.segments)  # type: ignore[union-attr]
    assert singlecard.counters().evaluations == before + networks, "PyTorch answered for a network"
    if keep is not None:
        keep.append(got)
    return Checked(result, compare(got, function(*_copies(inputs))))


def _copies(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x if isinstance(x, torch.nn.Parameter) else x.clone() for x in inputs]


@functools.cache
def _cache() -> str:
    return tempfile.mkdtemp(prefix="singlecard-tests-")


def weight(*shape: int) -> torch.nn.Parameter:
    """Return a constant with numbers that differ."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.nn.Parameter(torch.randn(shape, generator=generator))


@torch.no_grad()
def check_sizes(
    function: Callable[..., Any], shapes: Sequence[Sequence[Sequence[int]]], *, build: bool = False
) -> None:
    """Assert that one network is right for every list of input shapes, the first being captured.

    Axes whose extent differs between the lists are marked as dynamic.
    """
    session = Session(Options.parse({"cache_dir": _cache()}), "reference", build)
    compiled = torch.compile(
        fresh_call(function), backend=lambda graph, given: compile_in(session, graph, given)
    )
    for place, lists in enumerate(shapes):
        inputs = [torch.randn(*shape) for shape in lists]
        if place == 0:
            for x, *alike in zip(inputs, *shapes, strict=True):
                for axis, extents in enumerate(zip(*alike, strict=True)):
                    if len(set(extents)) > 1:
                        torch._dynamo.mark_dynamic(x, axis, min=min(extents), max=max(extents))
        before = singlecard.counters().evaluations
        comparison = compare(compiled(*inputs), function(*inputs))
        assert singlecard.counters().evaluations > before, "all of it ran in PyTorch"
        assert comparison.mismatch is None, f"{lists}: {comparison.mismatch}"
        assert comparison.max_rel_error <= 1e-5, f"{lists}: {comparison}"
    (graph,) = session.graphs  # more than one: a size was baked in
    assert not graph.fallback, graph.fallback[0].reason
