"""What stands around an engine's call: changed weights, ranges, numbers that become lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from singlecard.capture.results import Result
from singlecard.errors import RuntimeFailure
from singlecard.lowering.lower import Extent, Profile, input_name
from singlecard.runtime.binding import Binding, feeds_of, tensors_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.ranged import in_range
from singlecard.runtime.wiring import Slot, Step, Wiring

CPU = torch.device("cpu")


def _executable(weights: Sequence[torch.Tensor]) -> tuple[Executable, list[Any]]:
    """Return ``2 * x`` with weights that stand before ``x``, and the arguments."""
    places = tuple(range(len(weights)))
    wiring = Wiring(
        (0,), (len(weights),), places, (Step(True, (0,), (1,)),), (Slot(1),),
        (Result(0, None, ()),), (), {}, {},
    )  # fmt: skip
    made = Executable(wiring, [lambda values: [values[0] * 2]], Frozen(wiring.frozen, weights))
    return made, [*weights, torch.ones(2)]


def _write(weight: torch.Tensor) -> None:
    with torch.no_grad():
        weight.add_(1)


def _move(weight: torch.Tensor) -> None:
    weight.data = weight.data.clone()


@pytest.mark.parametrize("change", [_write, _move], ids=["written", "moved"])
@pytest.mark.parametrize("at", [0, 2])
def test_weights_that_changed_are_seen(change: Callable[[torch.Tensor], None], at: int) -> None:
    """A fine-tuned model would go on with the weights that it was compiled with."""
    made, args = _executable([torch.nn.Parameter(torch.randn(3)) for _ in range(3)])
    assert made.attempt(args) is not None
    change(args[at])
    assert made.attempt(args) is None


@pytest.mark.parametrize("count", [1, 2])
def test_another_models_weights_are_seen(count: int) -> None:
    """Two instances of one module share a graph, and would share weights."""
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(count)]
    made, args = _executable(weights)
    args[0] = torch.nn.Parameter(weights[0].detach().clone())
    assert made.attempt(args) is None


def test_weights_made_in_inference_mode_count_no_changes_and_are_taken() -> None:
    """Asking them for their version is an error in PyTorch."""
    with torch.inference_mode():
        weight = torch.randn(3)
    made, args = _executable([weight, torch.nn.Parameter(torch.randn(3))])
    assert made.attempt(args) is not None
    _write(args[1])
    assert made.attempt(args) is None


def test_no_weights_are_always_current() -> None:
    """A model without weights would be compiled at each call."""
    made, args = _executable([])
    assert made.attempt(args) is not None
    torch.testing.assert_close(made(args)[0], args[0] * 2)


def test_a_result_never_shares_memory_with_an_argument() -> None:
    """Writing to the answer would change the question."""
    wiring = Wiring(
        (0,), (0,), (), (Step(True, (0,), (1,)),), (Slot(1),), (Result(0, None, ()),), (), {}, {}
    )
    x = torch.ones(2)
    (result,) = Executable(wiring, [lambda values: [values[0]]], Frozen([], []))([x])
    assert result.data_ptr() != x.data_ptr()


def test_two_results_never_share_memory() -> None:
    """Eager PyTorch gives two tensors where a rewrite made one."""
    wiring = Wiring(
        (0,), (0,), (), (Step(True, (0,), (1, 2)),), (Slot(1), Slot(2)),
        (Result(0, None, ()), Result(1, None, ())), (), {}, {},
    )  # fmt: skip

    def run(values: Sequence[Any]) -> Sequence[Any]:
        shared = values[0] * 2
        return [shared, shared]

    first, second = Executable(wiring, [run], Frozen([], []))([torch.ones(2)])
    assert first.data_ptr() != second.data_ptr()


def _ranged() -> Binding:
    return Binding(
        (0,),
        {"size_0": Extent(1)},
        1,
        {},
        {
            input_name(0): Profile((1, 2), (4, 2), (8, 2)),
            "size_0": Profile((2,), (4,), (16,)),
        },
        CPU,
    )


def test_calls_outside_of_the_range_go_to_pytorch_each_time() -> None:
    """What was in range once must not let through what is not."""
    ran: list[str] = []

    def runs(name: str) -> Callable[[Sequence[Any]], Sequence[Any]]:
        def run(values: Sequence[Any]) -> Sequence[Any]:
            ran.append(name)
            return []

        return run

    call = in_range(runs("engine"), _ranged(), runs("pytorch"))
    for rows, number in ((4, 4), (9, 4), (4, 4), (4, 17), (4, 1), (8, 16)):
        call([torch.zeros(rows, 2), number])
    assert ran == ["engine", "pytorch", "engine", "pytorch", "pytorch", "engine"]


def test_outside_of_the_range_without_another_way_is_an_error() -> None:
    """With strict=True nothing runs in PyTorch without being asked."""
    call = in_range(lambda values: [], _ranged(), None)
    with pytest.raises(RuntimeFailure, match="axis 0 of size_0 has 17, .* for 2 to 16"):
        call([torch.zeros(4, 2), 17])


def test_numbers_become_lengths_that_are_made_once() -> None:
    """A generator would allocate for each number of each call."""
    give = tensors_of(_ranged())
    x = torch.zeros(4, 2)
    first, again, other = (give([x, number]) for number in (5, 5, 6))
    assert first[0] is x
    assert first[1] is again[1] and first[1].shape == (5,) and other[1].shape == (6,)


def test_feeds_are_named_as_the_network_names_its_inputs() -> None:
    """The evaluator would find nothing under its names."""
    feeds = feeds_of(_ranged())([torch.zeros(4, 2), 5])
    assert {name: tuple(value.shape) for name, value in feeds.items()} == {
        input_name(0): (4, 2),
        "size_0": (5,),
    }


@pytest.mark.parametrize(
    "mutations, lowered, runs",
    [((), True, 1), ((1,), True, 0), ((), False, 0)],
    ids=["results alone", "a written input", "ops of PyTorch"],
)
def test_what_leaves_a_trace_runs_only_for_the_right_weights(
    mutations: tuple[int, ...], lowered: bool, runs: int
) -> None:
    """A cache would be written to twice, and random numbers drawn twice, when weights change."""
    ran: list[int] = []

    def run(values: Sequence[Any]) -> Sequence[Any]:
        ran.append(1)
        return [values[0] * 2]

    wiring = Wiring(
        (0,), (1,), (0,), (Step(lowered, (0,), (1,)),), (Slot(1), *[Slot(1)] * len(mutations)),
        (Result(0, None, ()),), mutations, {}, {},
    )  # fmt: skip
    weight = torch.nn.Parameter(torch.randn(3))
    made = Executable(wiring, [run], Frozen((0,), [weight]))
    _write(weight)
    assert made.attempt([weight, torch.ones(2)]) is None
    assert len(ran) == runs
    assert made.attempt([torch.nn.Parameter(torch.randn(3)), torch.ones(2)]) is None
    assert len(ran) == runs, "a glance tells that these are another model's"
