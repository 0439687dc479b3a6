"""Sizes are worked out from what a call is given, whatever part of a graph they were read in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from singlecard.capture.aot import capture
from singlecard.capture.program import Program
from singlecard.options import Options
from singlecard.report.measure import fresh_call
from singlecard.report.verify import compare
from singlecard.runtime.executable import Executable
from singlecard.runtime.wiring import Slot, Wiring
from singlecard.session import Session


def needed_by(wiring: Wiring, slot: int) -> set[int]:
    """Return the values that a slot's value is worked out from."""
    if slot not in wiring.sizes:
        return {slot}
    needed: set[int] = set()
    fx.node.map_aggregate(
        wiring.sizes[slot].args,
        lambda item: needed.update(
            needed_by(wiring, item.number) if isinstance(item, Slot) else ()
        ),
    )
    return needed


def check_order(wiring: Wiring) -> None:
    """Assert that all that a step needs is there before it."""
    there = {*wiring.arguments, *wiring.constants}
    for step in wiring.steps:
        for slot in step.inputs:
            assert needed_by(wiring, slot) <= there, "a part waits for what itself makes"
        there.update(step.outputs)


@torch.no_grad()
def check_calls(
    function: Callable[..., Any],
    calls: Sequence[Sequence[Any]],
    dynamic: bool | None = True,
    **options: Any,
) -> list[Executable]:
    """Assert that answers are right for all calls, in order; return what runs the graphs."""
    session = Session(Options.parse({"min_block_size": 1, **options}), "reference", False)
    found: list[Executable] = []

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        def keep(program: Program) -> Executable:
            found.append(session.compile(program))
            check_order(found[-1].wiring)
            return found[-1]

        return capture(graph, examples, keep)

    compiled = torch.compile(fresh_call(function), backend=backend, dynamic=dynamic)
    for args in calls:
        result = compare(compiled(*args), function(*args))
        assert result.mismatch is None, result.mismatch
        assert result.max_rel_error <= 1e-5, result
    return found


_WEIGHT = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))

_READ_IN_BETWEEN: dict[str, Callable[[torch.Tensor], Any]] = {
    "padded": lambda x: F.pad(x, (1, 2)).flatten(2) * 2,
    "every other": lambda x: x[:, :, ::2].flatten(1) * 2,
    "pooled": lambda x: F.max_pool2d(x, 2).flatten(2) + 1,
    "joined": lambda x: torch.cat([x, x], 2).flatten(1) * 2,
    "convolved": lambda x: F.conv2d(x, _WEIGHT, stride=2, padding=1).flatten(2).mT * 2,
    "the rest of a view": lambda x: (x * 2).view(x.shape[0], 2, -1).mT + 1,
    "resized": lambda x: F.interpolate(F.avg_pool2d(x, 2), size=x.shape[2:]).flatten(1) - x.sum(),
    "half and half": lambda x: torch.cat(F.conv2d(x, _WEIGHT, padding=1).relu().chunk(2, 3), 2),
    "told": lambda x: (F.max_pool2d(x, 2).relu(), F.max_pool2d(x, 2).shape[2] * 3),
}

_SIZES = ((2, 2, 8, 12), (3, 2, 14, 10))


@pytest.mark.parametrize("outside", [(), ("aten.relu", "aten.view", "aten.convolution")])
@pytest.mark.parametrize("name", _READ_IN_BETWEEN)
def test_size_of_a_value_in_between(name: str, outside: tuple[str, ...]) -> None:
    """A second resolution ended in a KeyError: a part waited for what it makes itself."""
    calls = [(torch.randn(*shape),) for shape in _SIZES]
    check_calls(_READ_IN_BETWEEN[name], calls, exclude_ops=outside)


def test_size_of_a_value_in_between_costs_no_output() -> None:
    """An engine would write out a tensor only for its size to be read."""
    (executable,) = check_calls(_READ_IN_BETWEEN["pooled"], [(torch.randn(*_SIZES[0]),)])
    (step,) = executable.wiring.steps
    assert len(step.outputs) == 1


def test_engine_behind_pytorch_knows_the_sizes_of_the_call() -> None:
    """The second engine's input shows half of the height alone: resizing to the whole failed."""

    def model(x: torch.Tensor) -> torch.Tensor:
        small = F.avg_pool2d(x * 2, 2).relu()
        return F.interpolate(small + 1, size=(x.shape[2], x.shape[3] + 1)) * 2

    calls = [(torch.randn(*shape),) for shape in _SIZES]
    executable, *_ = check_calls(model, calls, exclude_ops=["aten.relu"])
    assert [step.lowered for step in executable.wiring.steps] == [True, False, True]


def test_number_of_found_elements_is_read_where_it_is_found() -> None:
    """How many elements `nonzero` finds, only a call tells; ops behind it wait for that number."""

    def model(x: torch.Tensor) -> Any:
        places = x.relu().nonzero()
        rows = places.to(torch.float32) @ torch.ones(2, 3)
        return rows.flatten() * 2, torch.arange(places.shape[0]) + places[:, 0]

    generator = torch.Generator().manual_seed(1)
    calls = [(torch.randn(*shape, generator=generator),) for shape in ((4, 5), (7, 3), (2, 9))]
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        (executable,) = check_calls(model, calls)
    assert any(step.lowered for step in executable.wiring.steps)
