"""Work on a model grows with its blocks, and not faster: a deep model compiles too.

INT8 took 2^n steps for n residual additions once, and no test of a small model had shown it. Here
every stage of a compilation runs on Programs of all the ways in which blocks hang together, of a
hundred and of a thousand blocks; what is counted are function calls and bytes, not seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from singlecard.capture.program import Program
from singlecard.lowering.guards import guards_of
from singlecard.lowering.lower import Lowered, lower
from singlecard.lowering.table import refusal as refusal_of_op
from singlecard.network.digest import network_parts
from singlecard.network.inspect import view_network
from singlecard.partition import Partition, divide
from singlecard.passes import PASSES, simplify
from singlecard.passes.intervals import interval_of
from singlecard.passes.rule import Rule, apply_rule, rule_name
from singlecard.passes.visible_rows import largest_of_rows
from singlecard.passes.weight_codes import constant_value
from singlecard.placement import decide, group_of
from singlecard.precision.bounds import bound_of
from singlecard.precision.casts import lower_precision
from singlecard.precision.places import places_of
from singlecard.precision.points import names_of, points_of
from singlecard.precision.quantize import quantize
from singlecard.precision.table import CalibrationTable, TensorScale
from singlecard.runtime.binding import binding_of
from singlecard.runtime.runners import eager_runner
from singlecard.runtime.wiring import wiring_of
from tests.growing import PROGRAMS, bytes_of, steps_of

#: What is asked of values by looking back: of the last one, and of every tenth.
QUESTIONS: dict[str, Callable[[Program, Any], Any]] = {
    "interval_of": interval_of,
    "bound_of": bound_of,
    "constant_value": constant_value,
}

#: How far apart ops are that stay in PyTorch.
DISTANCES = (3, 20)


#: How much more than the blocks the work may grow.
SLACK = 1.2

Work = Callable[[], Any]


class Stages:
    """What a compilation does with a Program, in order; a stage may need those before it."""

    def __init__(self, program: Program, slow: bool) -> None:
        self.program, self.slow = program, slow
        self.partition: Partition | None = None
        self.lowered: list[Lowered] = []
        self.copy: Program | None = None

    def all(self) -> Iterator[tuple[str, Work]]:
        yield from self.passes()
        for name, ask in QUESTIONS.items():
            yield name, lambda ask=ask: self.ask(ask)
        yield "largest_of_rows", lambda: largest_of_rows(self.program, self.program.outputs[0])
        yield "places_of", lambda: places_of(self.program)
        yield "names_of", lambda: names_of(self.program)
        yield "points_of", lambda: points_of(self.program)
        yield "copy", self.make_copy
        if self.slow:
            yield "quantize", self.quantize
            yield "lower_precision", self.lower_precision
            yield "simplify again", lambda: simplify(self.copied)
        yield "discard", lambda: self.copied.discard()
        for distance in DISTANCES:
            yield f"divide, {distance} apart", lambda distance=distance: self.divide(distance)
            yield f"wiring_of, {distance} apart", self.wire
            yield f"eager_runner, {distance} apart", self.make_runners
        yield "lower", self.lower
        yield "network_parts", self.digest
        yield "binding_of", self.bind
        yield "guards_of", lambda: guards_of(self.program.calls())

    def passes(self) -> Iterator[tuple[str, Work]]:
        """Yield what `simplify` runs, rule by rule; one that comes again has a number."""
        seen: Counter[str] = Counter()
        for step in PASSES:
            parts: list[tuple[str, Work]] = [
                (rule_name(rule), lambda rule=rule: self.apply(rule)) for rule in step.rules
            ]
            for name, work in parts or [(step.name, lambda step=step: step.run(self.program))]:
                seen[name] += 1
                yield f"{name} {seen[name]}", work

    def apply(self, rule: Rule) -> None:
        for _ in apply_rule(self.program, rule):
            pass

    def ask(self, ask: Callable[[Program, Any], Any]) -> None:
        for node in list(self.program.calls())[::-10]:
            ask(self.program, node)

    @property
    def copied(self) -> Program:
        assert self.copy is not None
        return self.copy

    def make_copy(self) -> None:
        self.copy = self.program.copy()

    def quantize(self) -> None:
        points = points_of(self.copied)
        fingerprint = {point.name: point.signature() for point in points}
        scales = {name: TensorScale(1.0, 1.0) for point in points for name, _ in point.operands}
        table = CalibrationTable("min-max", 1, (fingerprint,), scales)
        CalibrationTable.from_dict(table.to_dict()).check(fingerprint)
        decided = decide(points, "int8", table, lambda node: None)
        assignment = {item.name: item.taken for item in decided if item.taken == "int8"}
        assert all(group_of(point) for point in points)
        quantize(self.copied, points, assignment, table)

    def lower_precision(self) -> None:
        lower_precision(self.copied, torch.float16, lambda node: False)

    def divide(self, distance: int) -> None:
        refused = set(list(self.program.calls())[::distance])
        self.partition = divide(self.program, lambda node: "far" if node in refused else None)

    @property
    def divided(self) -> Partition:
        assert self.partition is not None
        return self.partition

    def wire(self) -> None:
        wiring_of(self.program, self.divided.segments)

    def make_runners(self) -> None:
        for segment in self.divided.segments:
            eager_runner(self.program, segment)

    def lower(self) -> None:
        self.partition = divide(self.program, refusal_of_op, 1)
        self.lowered = [lower(self.program, item) for item in self.divided.segments if item.lowered]
        assert self.lowered

    def digest(self) -> None:
        for lowered in self.lowered:
            network_parts(view_network(lowered.net.definition))
            lowered.makers_by_layer()

    def bind(self) -> None:
        segments = [segment for segment in self.divided.segments if segment.lowered]
        for lowered, segment in zip(self.lowered, segments, strict=True):
            binding_of(lowered, segment)


def measured(name: str, count: int, measure: Callable[[Work], Any], slow: bool) -> dict[str, Any]:
    stages = Stages(PROGRAMS[name](count), slow)
    return {stage: measure(work) for stage, work in stages.all()}


def worst(few: Counter[str], many: Counter[str], times: int) -> str:
    """Name the functions that grow the most beyond the blocks."""
    more = Counter({name: count - times * few[name] for name, count in many.items()})
    return "; ".join(f"{name}: {few[name]} -> {many[name]}" for name, _ in more.most_common(3))


def check_steps(name: str, few: int, many: int, slow: bool) -> None:
    before, after = (measured(name, count, steps_of, slow) for count in (few, many))
    times = many // few
    assert before.keys() == after.keys()
    for stage, steps in after.items():
        allowed = SLACK * times * max(before[stage].total(), 2 * few)
        assert steps.total() <= allowed, f"{stage}: {worst(before[stage], steps, times)}"
    assert sum(steps.total() for steps in after.values()) > 100 * many


@pytest.mark.parametrize("name", ("chain", "tower", "diamonds", "dense", "shared"))
def test_steps_grow_with_a_thousand_blocks(name: str) -> None:
    """A model of hundreds of layers would compile for hours."""
    check_steps(name, 100, 1000, False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_steps_of_all_stages_grow_with_the_blocks(name: str) -> None:
    """Blocks with what rules look for: some look far back, or quantize, at every block."""
    check_steps(name, 30, 90, True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_memory_grows_with_the_blocks(name: str) -> None:
    """What is held for each block of all other blocks would not fit, however small it is."""
    few, many = (measured(name, count, bytes_of, True) for count in (30, 90))
    for stage, held in many.items():
        # Python's tables grow by leaps.
        allowed = 1.5 * 3 * max(few[stage], 1 << 16)
        assert held <= allowed, f"{stage}: {few[stage]} -> {held}"
