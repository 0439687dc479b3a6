"""Declarations tell the truth: what they accept is lowered and right, what they refuse says why.

The partition, `explain` and the coverage page all read them. A declaration that accepts too much is
an exception in somebody's compile; one that refuses without the value met leaves him guessing.
"""

from __future__ import annotations

import functools
import itertools
import logging
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, first_refusal
from singlecard.lowering.coverage import render_coverage
from singlecard.lowering.declaration import Declaration
from singlecard.lowering.table import CARRIED, declarations, table
from tests.lowering.extra_calls import EXTRA
from tests.lowering.harvest import RealCall, real_calls
from tests.lowering.mutations import mutations
from tests.ops.harness import LOWERED, run_call
from tests.ops.measure import picked

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@functools.cache
def calls_of(target: Any) -> tuple[tuple[RealCall, Any], ...]:
    """Return calls of an op with their results."""
    extra = [RealCall(target, args, kwargs) for args, kwargs in EXTRA.get(str(target), ())]
    return tuple(
        (call, target(*call.args, **call.kwargs)) for call in (*extra, *real_calls()[target])
    )


def bound(target: Any, args: Any, kwargs: Any, result: Any, first_only: bool = False) -> Call:
    """Return a call as the partition sees it: nodes whose values are known, and users."""
    graph = fx.Graph()

    def node(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            is_weight = isinstance(value, torch.nn.Parameter)
            placeholder = graph.get_attr("x") if is_weight else graph.placeholder("x")
            placeholder.meta["val"] = value
            return placeholder
        if isinstance(value, (list, tuple)):
            return [node(item) for item in value]
        return value

    made = graph.call_function(
        target,
        tuple(node(arg) for arg in args),
        {key: node(value) for key, value in kwargs.items()},
    )
    made.meta["val"] = result
    if isinstance(result, (list, tuple)):
        for place in range(1 if first_only else len(result)):
            graph.call_function(operator.getitem, (made, place))
    return Call.of(made)


def is_carried(value: Any) -> bool:
    if isinstance(value, torch.nn.Parameter):
        return True  # a constant, whose type an op's own conditions speak of
    if isinstance(value, torch.Tensor):
        return value.dtype in CARRIED and value.numel() > 0
    return all(map(is_carried, value)) if isinstance(value, (list, tuple)) else True


def accepted(target: Any) -> Iterator[tuple[RealCall, bool]]:
    """Yield the calls that a declaration accepts, and whether for their first result only."""
    for call, result in calls_of(target):
        for first_only in (False, True):
            used = result[0] if first_only and isinstance(result, (list, tuple)) else result
            made = bound(target, call.args, call.kwargs, result, first_only)
            carried = is_carried([*call.args, *call.kwargs.values(), used])
            if carried and not first_refusal(table()[target].conditions, made):
                yield call, first_only
                break


def first_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gives the first result of another."""
    return lambda *args, **kwargs: function(*args, **kwargs)[0]


#: Of equal elements PyTorch promises none in particular; with the place of the axis.
FREE_INDICES = {
    torch.ops.aten.topk.default: 1,
    torch.ops.aten.kthvalue.default: 1,
    torch.ops.aten.sort.default: 0,
    torch.ops.aten.mode.default: 0,
}


@pytest.mark.parametrize("target", sorted(table(), key=str), ids=str)
def test_what_is_accepted_builds_and_equals_eager(target: Any) -> None:
    calls = list(accepted(target))
    assert calls, f"no call of {target} is at hand: add one to tests/lowering/extra_calls.py"
    for place, (call, first_only) in enumerate(calls[:3]):
        is_free = target in FREE_INDICES
        function = picked(target, FREE_INDICES[target]) if is_free else target
        if first_only:
            function = first_of(function)
        outcome = run_call(function, call.args, call.kwargs, build=place == 0)
        assert outcome.state == LOWERED, f"call {place}: {outcome.reason}"


CONDITIONS = [
    pytest.param(declaration, condition, id=f"{declaration.targets[0]}: {condition.text}")
    for declaration in declarations()
    for condition in declaration.conditions
]


def refusals(declaration: Declaration, condition: Condition) -> Iterator[str]:
    """Yield what a condition says of calls that were changed until it refuses."""
    for target in declaration.targets:
        calls = calls_of(target)
        for call, result in {id(item[0]): item for item in (*calls[:3], *calls[-3:])}.values():
            for args, kwargs in mutations(target, call.args, call.kwargs):
                try:
                    sentence = condition.refusal(bound(target, args, kwargs, result))
                except Exception:  # the change made no sense for this op
                    continue
                if sentence:
                    yield sentence


#: Refusals that are read of one condition.
ENOUGH = 20


@pytest.mark.parametrize(("declaration", "condition"), CONDITIONS)
def test_what_is_refused_is_told_with_the_value_met(
    declaration: Declaration, condition: Condition
) -> None:
    sentences = set(itertools.islice(refusals(declaration, condition), ENOUGH))
    assert sentences, f"nothing that was tried is refused by: {condition.text}"
    names = {str(target).rpartition(".")[0] for target in declaration.targets}
    for sentence in sentences:
        assert any(sentence.startswith(f"{name} ") for name in names), sentence
        assert any(word in sentence for word in (" got ", " has ", " have ")), sentence


def test_the_coverage_page_is_up_to_date() -> None:
    """People decide by this page whether their model will be lowered."""
    assert PAGE.read_text() == render_coverage(), (
        "run python -m singlecard.lowering.coverage docs/coverage.md"
    )


def test_every_declaration_says_what_it_computes() -> None:
    """An empty cell in the coverage page tells a reader nothing."""
    silent = [item.targets[0] for item in declarations() if not item.note]
    assert not silent
