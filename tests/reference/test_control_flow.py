"""Loops, conditionals and assertions, drawn by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from singlecard.errors import EvaluationError


def add(sketch: Any, a: Any, b: Any) -> Any:
    return sketch.add("elementwise", a, b, sketch.trt.ElementWiseOperation.SUM).get_output(0)


def count(sketch: Any, number: int) -> Any:
    return sketch.constant(torch.tensor(number, dtype=torch.int32))


def joined(sketch: Any, loop: Any, value: Any, kind: str, axis: int, length: Any) -> Any:
    layer = loop.add_loop_output(value, sketch.trt.LoopOutput.__members__[kind], axis)
    layer.set_input(1, length)
    return layer.get_output(0)


def last(sketch: Any, loop: Any, value: Any) -> Any:
    return loop.add_loop_output(value, sketch.trt.LoopOutput.LAST_VALUE).get_output(0)


def running_sum(sketch: Any, x: Tensor, trips: int, reverse: bool = False) -> tuple[Any, ...]:
    """A loop that adds one row of ``x`` after the other."""
    loop, length = sketch.add("loop"), count(sketch, trips)
    loop.add_trip_limit(length, sketch.trt.TripLimit.COUNT)
    row = loop.add_iterator(sketch.input(x), 0, reverse).get_output(0)
    total = loop.add_recurrence(sketch.constant(torch.zeros(x.shape[1])))
    following = add(sketch, total.get_output(0), row)
    total.set_input(1, following)
    return loop, length, total.get_output(0), following


def test_a_recurrence_carries_its_value_out_of_the_loop(sketch: Any) -> None:
    """A recurrent model would answer with the state before its last step."""
    x = torch.randn(4, 3)
    loop, _, total, _ = running_sum(sketch, x, 4)
    torch.testing.assert_close(sketch.run(last(sketch, loop, total)), x.sum(0))


def test_a_loop_without_iterations_gives_the_initial_value(sketch: Any) -> None:
    """An empty sequence would fail, or run one step too much."""
    loop, length, total, following = running_sum(sketch, torch.randn(4, 3), 0)
    outputs = last(sketch, loop, total), joined(sketch, loop, following, "CONCATENATE", 0, length)
    final, steps = sketch.run(*outputs)
    assert final.tolist() == [0.0, 0.0, 0.0]
    assert steps.shape == (0, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_values_of_all_iterations_are_joined(sketch: Any, axis: int) -> None:
    """The hidden states of a sequence would come in a wrong order or dimension."""
    x = torch.randn(4, 3)
    loop, length, total, following = running_sum(sketch, x, 4)
    forward = joined(sketch, loop, following, "CONCATENATE", axis, length)
    backward = joined(sketch, loop, following, "REVERSE", axis, length)
    started = joined(sketch, loop, total, "CONCATENATE", axis, length)
    got = sketch.run(forward, backward, started)
    sums = x.cumsum(0)
    expected = [sums, sums.flip(0), torch.cat((torch.zeros(1, 3), sums[:-1]))]
    for value, rows in zip(got, expected, strict=True):
        torch.testing.assert_close(value, rows if axis == 0 else rows.T)


def test_a_reversed_iterator_starts_at_the_trip_count(sketch: Any) -> None:
    """A bidirectional model would read the padding of a short sequence first."""
    x = torch.randn(5, 3)
    loop, length, _, following = running_sum(sketch, x, 4, reverse=True)
    got = sketch.run(joined(sketch, loop, following, "CONCATENATE", 0, length))
    torch.testing.assert_close(got, x[:4].flip(0).cumsum(0))


def test_a_condition_ends_a_loop_before_its_count(sketch: Any) -> None:
    """Generation would not stop where the model says so."""
    trt, loop = sketch.trt, sketch.add("loop")
    number = loop.add_recurrence(sketch.input(torch.tensor(1.0)))
    twice = add(sketch, number.get_output(0), number.get_output(0))
    number.set_input(1, twice)
    limit = sketch.constant(torch.tensor(20.0))
    less = sketch.add("elementwise", number.get_output(0), limit, trt.ElementWiseOperation.LESS)
    loop.add_trip_limit(less.get_output(0), trt.TripLimit.WHILE)
    loop.add_trip_limit(count(sketch, 100), trt.TripLimit.COUNT)
    assert sketch.run(last(sketch, loop, number.get_output(0))).item() == 32.0


def test_an_inner_loop_starts_anew_in_each_iteration(sketch: Any) -> None:
    """A loop in a loop would keep the values of the first time it ran."""
    trt, x = sketch.trt, torch.arange(6.0).reshape(3, 2)
    outer, inner = sketch.add("loop"), sketch.add("loop")
    outer.add_trip_limit(count(sketch, 3), trt.TripLimit.COUNT)
    row = outer.add_iterator(sketch.input(x)).get_output(0)
    inner.add_trip_limit(count(sketch, 2), trt.TripLimit.COUNT)
    element = inner.add_iterator(row).get_output(0)
    inner_sum = inner.add_recurrence(sketch.constant(torch.tensor(0.0)))
    inner_sum.set_input(1, add(sketch, inner_sum.get_output(0), element))
    row_sum = last(sketch, inner, inner_sum.get_output(0))
    got = sketch.run(joined(sketch, outer, row_sum, "CONCATENATE", 0, count(sketch, 3)))
    assert got.tolist() == [1.0, 5.0, 9.0]


def conditional(sketch: Any, condition: Any, x: Any, rows: Any) -> Any:
    """``x[:rows]`` if the condition holds, else twice as much as x."""
    choice = sketch.add("if_conditional")
    choice.set_condition(condition)
    inside = choice.add_input(x).get_output(0)
    cut = sketch.add("slice", inside, (0,), (3,), (1,))
    cut.set_input(1, rows)
    return choice.add_output(cut.get_output(0), add(sketch, inside, inside)).get_output(0)


@pytest.mark.parametrize("taken", [True, False])
def test_only_the_branch_that_is_taken_runs(sketch: Any, taken: bool) -> None:
    """A branch that guards against an impossible slice would fail nevertheless."""
    x = torch.arange(3.0)
    start = sketch.input(torch.tensor([0 if taken else 2]))
    condition = sketch.input(torch.tensor(taken))
    got = sketch.run(conditional(sketch, condition, sketch.input(x), start))
    assert torch.equal(got, x if taken else x + x)


def test_a_conditional_in_a_loop_chooses_in_each_iteration(sketch: Any) -> None:
    """The first choice would be kept for the whole sequence."""
    trt, loop, x = sketch.trt, sketch.add("loop"), torch.tensor([True, False, True])
    loop.add_trip_limit(count(sketch, 3), trt.TripLimit.COUNT)
    choice = sketch.add("if_conditional")
    choice.set_condition(loop.add_iterator(sketch.input(x)).get_output(0))
    # Neither branch changes with the loop: only the condition does.
    one, two = (choice.add_input(sketch.constant(torch.tensor(n))) for n in (1.0, 2.0))
    chosen = choice.add_output(one.get_output(0), two.get_output(0)).get_output(0)
    got = sketch.run(joined(sketch, loop, chosen, "CONCATENATE", 0, count(sketch, 3)))
    assert got.tolist() == [1.0, 2.0, 1.0]


def test_an_assertion_that_does_not_hold_says_its_message(sketch: Any) -> None:
    """Two inputs whose sizes must agree would give numbers when they do not."""
    x, y = sketch.input(torch.zeros(3), (-1,)), sketch.input(torch.zeros(4), (-1,))
    shapes = [sketch.add("shape", tensor).get_output(0) for tensor in (x, y)]
    equal = sketch.add("elementwise", *shapes, sketch.trt.ElementWiseOperation.EQUAL)
    sketch.add("assertion", equal.get_output(0), "both must be as long")
    with pytest.raises(EvaluationError, match="both must be as long"):
        sketch.run(sketch.add("identity", x).get_output(0))
