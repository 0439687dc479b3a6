"""Declarations tell the truth: what they accept is lowered and right, what they refuse says why.

The partition, `explain` and the coverage page all read them. A declaration that accepts too much is
an exception in somebody's compile; one that refuses without the value met leaves him guessing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from singlecard.lowering.call import Call
from singlecard.lowering.conditions import Condition, first_refusal
from singlecard.lowering.coverage import render_coverage
from singlecard.lowering.table import CARRIED, declarations, table
from tests.lowering.extra_calls import EXTRA
from tests.lowering.harvest import RealCall, real_calls
from tests.lowering.mutations import mutations
from tests.ops.harness import LOWERED, RANDOM, run_call

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def calls_of(target: Any) -> list[RealCall]:
    extra = [RealCall(target, args, kwargs) for args, kwargs in EXTRA.get(str(target), ())]
    return [*extra, *real_calls()[target]]


def bound(target: Any, args: Any, kwargs: Any, result: Any) -> Call:
    """Return a call as the partition sees it: nodes whose values are known."""
    graph = fx.Graph()

    def node(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            placeholder = graph.placeholder("x")
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
    return Call.of(made)


def is_carried(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype in CARRIED and value.numel() > 0
    return all(map(is_carried, value)) if isinstance(value, (list, tuple)) else True


def accepted(target: Any) -> Iterator[RealCall]:
    """Yield the calls that a target's declaration accepts."""
    for call in calls_of(target):
        result = call.target(*call.args, **call.kwargs)
        if not is_carried([*call.args, *call.kwargs.values(), result]):
            continue
        if not first_refusal(
            table()[target].conditions, bound(target, call.args, call.kwargs, result)
        ):
            yield call


#: Ops that are lowered for their first result only.
FIRST_ONLY = (
    torch.ops.aten.max_pool2d_with_indices.default,
    torch.ops.aten.max_pool3d_with_indices.default,
    torch.ops.aten.native_layer_norm.default,
)


def function_of(target: Any) -> Callable[..., Any]:
    """Return what is called: the op, or its first result."""
    if target not in FIRST_ONLY:
        return target  # type: ignore[no-any-return]
    return lambda *args, **kwargs: target(*args, **kwargs)[0]


TARGETS = sorted(table(), key=str)


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_is_accepted_builds_and_equals_eager(target: Any) -> None:
    calls = list(accepted(target))
    assert calls, f"no call of {target} is at hand: add one to tests/lowering/extra_calls.py"
    for place, call in enumerate(calls[:3]):
        outcome = run_call(function_of(target), call.args, call.kwargs, build=place == 0)
        assert outcome.state in (LOWERED, RANDOM), f"call {place}: {outcome.reason}"


CONDITIONS = [
    pytest.param(declaration, condition, id=f"{declaration.targets[0]}: {condition.text}")
    for declaration in declarations()
    for condition in declaration.conditions
]


@pytest.mark.parametrize(("declaration", "condition"), CONDITIONS)
def test_what_is_refused_is_told_with_the_value_met(declaration: Any, condition: Condition) -> None:
    sentences = set()
    for target in declaration.targets:
        calls = calls_of(target)
        for call in {id(call): call for call in (*calls[:3], *calls[-3:])}.values():
            result = call.target(*call.args, **call.kwargs)
            for args, kwargs in mutations(target, call.args, call.kwargs):
                try:
                    sentence = condition.refusal(bound(target, args, kwargs, result))
                except Exception:  # the change made no sense for this op
                    continue
                if sentence:
                    sentences.add(sentence)
    assert sentences, f"nothing that was tried is refused by: {condition.text}"
    for sentence in sentences:
        names = {str(target).rpartition(".")[0] for target in declaration.targets}
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
