"""Memory that results share in eager PyTorch they share here, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from singlecard.backend import compile_graph
from singlecard.report.measure import fresh_call


@torch.no_grad()
def check(model: Callable[..., Any], *args: torch.Tensor, dynamic: bool | None = None) -> None:
    """Compare values, strides, and what writing to one result or input does to all others."""

    def backend(graph: Any, examples: Any) -> Any:
        return compile_graph(graph, examples, options={"execution": "reference"})

    compiled = torch.compile(fresh_call(model), backend=backend, dynamic=dynamic)
    ours = [arg.detach().clone(memory_format=torch.preserve_format) for arg in args]
    theirs = [arg.detach().clone(memory_format=torch.preserve_format) for arg in args]
    got, want = compiled(*ours), model(*theirs)
    for a, b in zip([*got, *ours], [*want, *theirs], strict=True):
        # Gaps that a slice leaves are not made again.
        is_dense = torch.ops.aten.is_non_overlapping_and_dense(b)
        assert a.stride() == b.stride() or not (is_dense or 0 in b.stride())
    for place in range(len(got)):
        torch.testing.assert_close([*got, *ours], [*want, *theirs])
        if want[place].is_contiguous():
            got[place].add_(1)
            want[place].add_(1)
    torch.testing.assert_close([*got, *ours], [*want, *theirs])


def with_old(x: torch.Tensor) -> Any:
    old = x.clone()
    x.add_(1)
    return old, x * 2


def swapped(x: torch.Tensor, y: torch.Tensor) -> Any:
    old = x.clone()
    x.copy_(y)
    y.copy_(old)
    return (x + y,)


def with_view(x: torch.Tensor) -> Any:
    y = x + 1
    return y, y.view(-1)[1:], y[0]


def with_pieces(x: torch.Tensor) -> Any:
    y = x + 1
    a, b = y.split(1)
    return y, a, b


def transposed(x: torch.Tensor) -> Any:
    y = x.t() + 1
    return y, y[1:], y.t()


CASES: dict[str, tuple[Callable[..., Any], int]] = {
    "a copy of an input": (lambda x: (x.clone(),), 1),
    "an input times one": (lambda x: (x * torch.ones(1), x + torch.zeros(1)), 1),
    "a copy from before a mutation": (with_old, 1),
    "inputs that change places": (swapped, 2),
    "one sum, written twice": (lambda x: (x + 1, x + 1), 1),
    "a value and its copy": (lambda x: ((x + 1), (x + 1).clone()), 1),
    "a value and views of it": (with_view, 1),
    "a value and its pieces": (with_pieces, 1),
    "a value with transposed memory": (transposed, 1),
    "a view of a view alone": (lambda x: ((x + 1).t()[1:],), 1),
    "an expanded value": (lambda x: ((x.sum(0, keepdim=True)).expand(2, 3),), 1),
    "rows of one row": (lambda x: ((x + 1).mean(0).expand(4, 3), x * 2), 1),
    "an eager op's view of an input": (lambda x: (torch.special.bessel_j0(x).t(), x.t() * 1), 1),
    "an input that is written and read": (lambda x: (x.add_(1) * 2, x + 1), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_memory(name: str) -> None:
    """A user who writes into one result would find another one, or an input, changed."""
    model, count = CASES[name]
    check(model, *(torch.randn(2, 3) for _ in range(count)))


def test_shared_memory_with_symbolic_sizes() -> None:
    """Views whose sizes are only known in a call share memory all the same."""
    check(lambda x: ((y := x + 1), y.view(-1)), torch.randn(2, 3), dynamic=True)


def test_channels_last_output() -> None:
    """Code behind the model that views the output by its strides would read other elements."""
    x = torch.randn(1, 3, 8, 8).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last).eval()
    check(lambda x: (conv(x).relu(),), x)


def test_channels_last_and_strided_inputs() -> None:
    """An input's layout is no part of its values: taken as it lies, an image becomes noise."""
    check(
        lambda x: (x * 2, x.sum(1)), torch.randn(1, 3, 4, 4).to(memory_format=torch.channels_last)
    )
    check(lambda x: (x * 2,), torch.randn(4, 6)[:, ::2].t())


def test_strided_look_at_an_engines_value() -> None:
    """as_strided reads memory by its layout, which an engine chooses otherwise than PyTorch."""
    check(
        lambda x: (torch.as_strided(x.t() + 1, (2, 2), (1, 2)) * 1,), torch.arange(6.0).view(2, 3)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_views_of_an_input_are_its_views(dynamic: bool) -> None:
    """With dynamic sizes PyTorch makes a view again from our strides: wrong ones, wrong values."""

    def views(x: torch.Tensor) -> Any:
        return x.view(x.shape[0], 2, 4).transpose(1, 2), x.split(4, 1)[1], x.t()[2:]

    check(views, torch.randn(6, 8), dynamic=dynamic)
