"""Placement reads plans: what costs more in INT8 stays in FP16, and the whole is never slower."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from singlecard.engine.cards import find_card
from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.placement import (
    NOT_BUILT,
    NOT_COMPARED,
    decide,
    place,
    placement_from_dict,
    placement_to_dict,
)

CARD = find_card("RTX 4090")


def kernel(module: str, moved: int, arithmetic: str | None) -> Kernel:
    return Kernel(
        "k", "gemm", (), (), (), (module,), ("aten.linear",), False, arithmetic, 0, moved, 0
    )


def report(kernels: list[Kernel]) -> PlanReport:
    return PlanReport(tuple(kernels), (), (), None, 0, 0, 0)


def point(name: str) -> Any:
    operands = ((f"{name}:linear/input", None),)
    return SimpleNamespace(
        name=f"{name}:linear", operands=operands, weight=None, op="linear", node=name
    )


class Plans:
    """Plans whose cost is known for each op: bytes, kernels and arithmetic by precision."""

    def __init__(self, quantized: Mapping[str, tuple[int, int, str]]) -> None:
        self.quantized = quantized
        self.built: list[dict[str, str]] = []

    def __call__(self, assignment: Mapping[str, str]) -> list[PlanReport]:
        self.built.append(dict(assignment))
        kernels = []
        for name, (moved, count, arithmetic) in self.quantized.items():
            if f"{name}:linear" in assignment:
                kernels += [kernel(name, moved // count, arithmetic)] * count
            else:
                kernels.append(kernel(name, 10_000_000, "Half"))
        return [report(kernels)]


def placed(quantized: Mapping[str, tuple[int, int, str]], trials: int = 48) -> Any:
    points = [point(name) for name in quantized]
    plans = Plans(quantized)
    result = place(points, {item.name: "int8" for item in points}, plans, [CARD], trials)
    return result, plans


def test_keeps_what_pays() -> None:
    """Half the bytes in one kernel: a user who asks for INT8 gets it."""
    result, _ = placed({"a": (5_000_000, 1, "Int8"), "b": (5_000_000, 1, "Int8")})
    assert result.assignment == {"a:linear": "int8", "b:linear": "int8"}
    assert result.after.bytes_moved == 10_000_000


def test_leaves_out_what_costs_more() -> None:
    """The loudest complaint about INT8 is that it is slower: such ops stay as they are."""
    result, _ = placed({"a": (5_000_000, 1, "Int8"), "b": (11_000_000, 3, "Int8")})
    assert result.assignment == {"a:linear": "int8"}
    (left,) = [item for item in result.decisions if item.taken == "fp16"]
    assert left.name == "b:linear" and "costs" in left.reason and "instead of saving" in left.reason


def test_leaves_out_what_is_only_simulated() -> None:
    """INT8 that the plan multiplies in Half saves bytes at best: it must not be called INT8."""
    result, _ = placed({"a": (5_000_000, 1, "Int8"), "b": (9_000_000, 1, "Half")})
    assert result.assignment == {"a:linear": "int8"}
    (left,) = [item for item in result.decisions if item.taken == "fp16"]
    assert "simulated" in left.reason and "Half" in left.reason


def test_residual_operands_follow_their_products() -> None:
    """Rounding for an addition alone is a kernel more, and ``explain`` would call it INT8."""
    operands = (("a:linear/input", None),)
    left, right = point("a"), point("b")
    added = SimpleNamespace(
        name="a:residual", operands=operands, weight=None, op="residual", node="+"
    )
    plans = Plans({"a": (11_000_000, 2, "Int8"), "b": (5_000_000, 1, "Int8")})
    points = [left, right, added]
    result = place(points, {item.name: "int8" for item in points}, plans, [CARD], 48)
    assert result.assignment == {"b:linear": "int8"}
    (decision,) = [item for item in result.decisions if item.name == "a:residual"]
    assert "no product reads this value rounded" in decision.reason
    table = SimpleNamespace(tensors={"b:linear/input": None}, assignment={"b:linear": "fp16"})
    decided = decide(points, "int8", table, lambda node: None)  # type: ignore[arg-type]
    assert {item.name: item.taken for item in decided}["a:residual"] == "fp16"


def test_is_never_slower_than_fp16() -> None:
    """Whatever the search finds in its trials, a plan that is slower than FP16's is not taken."""
    costly = dict.fromkeys("abcdef", (9990000, 3, "Int8"))
    for trials in (2, 3, 48):
        result, _ = placed(costly, trials)
        assert not result.assignment, trials
        assert not result.after.is_slower_than(result.before)
        assert all(item.reason for item in result.decisions)


@pytest.mark.parametrize("trials", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("arithmetic", ["Int8", "Half"])
def test_no_more_plans_are_built_than_the_limit_says(trials: int, arithmetic: str) -> None:
    """Each takes seconds to minutes: a limit that is passed once is no limit for a large model."""
    names = "abcdefghij"
    sizes = {name: (8_000_000 + 300_000 * at, 1, arithmetic) for at, name in enumerate(names)}
    result, plans = placed(sizes, trials)
    assert len(plans.built) == result.trials <= trials
    assert result.after is None or not result.after.is_slower_than(result.before)
    assert bool(result.assignment) == (trials >= 2 and arithmetic == "Int8")
    assert all(item.reason for item in result.decisions if item.taken == "fp16")


def test_no_plan_is_built_twice() -> None:
    """The plan that was found best was built once more to look for simulated arithmetic."""
    names = {"a": (5_000_000, 1, "Int8"), "b": (11_000_000, 3, "Int8"), "c": (9_000_000, 1, "Half")}
    _, plans = placed(names)
    built = [tuple(sorted(assignment)) for assignment in plans.built]
    assert len(built) == len(set(built))


def test_layers_that_repeat_are_decided_together() -> None:
    """A model of a hundred layers must not build a hundred times as many plans."""
    layers = {f"layers.{at}.{name}": (5_000_000, 1, "Int8") for at in range(50) for name in "ab"}
    result, plans = placed(layers)
    assert len(result.assignment) == 100
    assert len(plans.built) < 8


def test_a_plan_that_does_not_build_is_not_taken() -> None:
    """A quantized op that TensorRT refuses must not take the whole engine with it."""
    points = [point("a"), point("b")]
    plans = Plans({"a": (5_000_000, 1, "Int8"), "b": (5_000_000, 1, "Int8")})

    def build(assignment: Mapping[str, str]) -> list[PlanReport] | None:
        return None if "b:linear" in assignment else plans(assignment)

    result = place(points, {item.name: "int8" for item in points}, build, [CARD], 48)
    assert result.assignment == {"a:linear": "int8"}
    assert "does not build" in [item.reason for item in result.decisions][1]


#: A plan of full TensorRT, whose kernels nobody reads.
UNREAD = PlanReport(None, (), (), None, 0, 0, 0)


def test_what_cannot_be_compared_is_taken_as_asked() -> None:
    """With full TensorRT ``precision="int8"`` must not mean FP16 unseen, nor INT8 with a promise
    that nobody kept: the decision says so."""
    built: list[dict[str, str]] = []

    def build(assignment: Mapping[str, str]) -> list[PlanReport]:
        built.append(dict(assignment))
        return [UNREAD]

    points = [point("a"), point("b")]
    result = place(points, {item.name: "int8" for item in points}, build, [CARD], 48)
    assert result.assignment == {"a:linear": "int8", "b:linear": "int8"}
    assert {item.reason for item in result.decisions} == {NOT_COMPARED}
    assert (result.before, result.after, result.trials) == (None, None, 1)
    assert built == [result.assignment]  # each trial takes minutes there, and tells nothing
    assert placement_from_dict(placement_to_dict(result)) == result


def test_one_plan_that_is_not_known_is_enough() -> None:
    """The cost of a model is that of all its engines: half of it would be compared with all."""
    known = report([kernel("a", 1, "Half")])
    points = [point("a")]
    result = place(points, {"a:linear": "int8"}, lambda _: [known, UNREAD], [CARD], 48)
    assert [item.reason for item in result.decisions] == [NOT_COMPARED]


def test_what_does_not_build_is_not_taken_without_a_comparison() -> None:
    """As asked would leave the whole engine to PyTorch, where FP16 has one."""
    points = [point("a"), point("b")]

    def build(assignment: Mapping[str, str]) -> list[PlanReport] | None:
        return None if assignment else [UNREAD]

    result = place(points, {item.name: "int8" for item in points}, build, [CARD], 48)
    assert not result.assignment
    assert {item.reason for item in result.decisions} == {NOT_BUILT}


@pytest.mark.parametrize("seed", range(8))
def test_never_slower_whatever_the_costs(seed: int) -> None:
    """The rule that a user relies on, on random plans."""
    import random

    draw = random.Random(seed)
    costs = {
        name: (draw.randrange(1_000_000, 14_000_000), draw.randrange(1, 5), "Int8")
        for name in "abcdefgh"
    }
    result, _ = placed(costs)
    assert not result.after.is_slower_than(result.before)
    alone = {
        name
        for name, (moved, count, _) in costs.items()
        if moved / CARD.bandwidth + count * 1e-6 < 10_000_000 / CARD.bandwidth + 1e-6
    }
    assert {name.partition(":")[0] for name in result.assignment} == alone
