"""A compiled model beside the same model in eager PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

import singlecard
from singlecard.backend import compile_graph, compile_in
from singlecard.options import Options
from singlecard.session import Session

#: Small models stand for large ones here: no engine of theirs is too small.
REFERENCE = {"execution": "reference", "min_block_size": 1}


class Compiled:
    """A compiled model, and how often its backend was asked."""

    def __init__(
        self, model: Callable[..., Any], dynamic: bool | None = None, **options: Any
    ) -> None:
        self.graphs = 0

        def backend(graph: Any, examples: Any) -> Any:
            self.graphs += 1
            return compile_graph(graph, examples, options={**REFERENCE, **options})

        self.call = torch.compile(model, backend=backend, dynamic=dynamic)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.call(*args, **kwargs)


class Watched:
    """A compiled model, and the session that tells what became of its graphs."""

    def __init__(self, model: Callable[..., Any], dynamic: bool | None = None) -> None:
        self.session = Session(Options.parse(REFERENCE), "reference", False)

        def backend(graph: Any, examples: Any) -> Any:
            return compile_in(self.session, graph, examples)

        self.call = torch.compile(model, backend=backend, dynamic=dynamic)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.call(*args, **kwargs)

    @property
    def reasons(self) -> list[str]:
        """Why ops stay in PyTorch."""
        return [item.reason for graph in self.session.graphs for item in graph.fallback]

    @property
    def lowered(self) -> int:
        return sum(graph.lowered_ops for graph in self.session.graphs)


def equal(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Compare nests: structure, classes, types, shapes, values."""
    got_leaves, got_spec = pytree.tree_flatten(got)
    want_leaves, want_spec = pytree.tree_flatten(want)
    assert got_spec == want_spec
    for a, b in zip(got_leaves, want_leaves, strict=True):
        assert type(a) is type(b)
        if isinstance(b, torch.Tensor):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
        else:
            assert a == b


@torch.no_grad()
def check(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Compare with eager PyTorch what a network answers."""
    before = singlecard.counters()
    got = Compiled(model)(*args, **kwargs)
    assert (singlecard.counters() - before).evaluations, "all of it ran in PyTorch"
    equal(got, model(*args, **kwargs))


@torch.no_grad()
def check_left(model: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Compare with eager PyTorch what nothing but PyTorch can answer."""
    before = singlecard.counters()
    got = Compiled(model)(*args, **kwargs)
    assert not (singlecard.counters() - before).evaluations, "a network was evaluated: use check"
    equal(got, model(*args, **kwargs))
