"""`precision="auto"`: the cheapest precision for each op that keeps the answers within a tolerance.

First each op is quantized alone, and what it does to the model's outputs is measured. Then ops are
assigned from the cheapest assignment on, the op that hurts most for the bytes it saves being given
more bits first, until the outputs, with all that is assigned quantized together, are within the
tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import fx
from torch.utils import _pytree as pytree

from singlecard.backend import compile_in
from singlecard.capture.program import Program
from singlecard.engine.build import trial_report
from singlecard.engine.plan_traffic import total
from singlecard.errors import (
    BuildError,
    CalibrationError,
    FlavourError,
    LoweringError,
    OptionError,
)
from singlecard.network.versions import lists_kernels
from singlecard.options import Options
from singlecard.partition import divide
from singlecard.placement import group_of
from singlecard.precision.points import Point, points_of
from singlecard.precision.quantize import ROUNDING, quantize, refusal
from singlecard.precision.table import CalibrationTable
from singlecard.precision.weights import Quantized
from singlecard.report.measure import compiled_for_now
from singlecard.report.plan_rows import format_bytes
from singlecard.runtime.executable import Executable
from singlecard.runtime.runners import eager_runner
from singlecard.session import Session
from singlecard_calib.calibrate import calibrate
from singlecard_calib.feeding import calls, check_evaluation
from singlecard_calib.rounding import check_weights, rounded_weights, write_weights

#: Returns how far outputs are from what was expected, 0 for the same; larger is worse.
Metric = Callable[[Any, Any], float]

#: Bits of a weight in each precision.
_BITS = {"int4-weight": 4.25, "int8-weight": 8.0, "int8": 8.0, "fp8": 8.0, "fp16": 16.0}

#: Precisions that are tried, the one with the fewest bytes first.
PRECISIONS = ("int4-weight", "int8", "int8-weight")

#: Steps of halving the tolerance that single errors are held against.
_ROUNDS = 12


def relative_l2(outputs: Any, expected: Any) -> float:
    """Norm of the difference over norm of the expected, over all floating-point outputs."""
    squares = norm = 0.0
    got, want = pytree.tree_leaves(outputs), pytree.tree_leaves(expected)
    for a, b in zip(got, want, strict=True):
        if isinstance(b, torch.Tensor) and b.is_floating_point():
            squares += float((a.detach().double() - b.detach().double()).square().sum())
            norm += float(b.detach().double().square().sum())
    return float((squares / norm) ** 0.5 if norm else squares**0.5)


@dataclass(frozen=True)
class Trial:
    """One op in one precision, alone.

    Attributes:
        error: of the model's outputs, by the metric.
        saved: bytes that a plan with everything in this precision would move more without it, its
            share of what all layers' same ops would.
    """

    op: str
    precision: str
    error: float
    saved: int


@dataclass(frozen=True)
class Search:
    """What `search_precision` found. Prints as a table.

    Attributes:
        table: the calibration table with the assignment, for ``precision="auto"``.
        error: of the outputs with the assignment, by the metric.
        tolerance: what it was to be within.
        trials: each op alone in each precision.
        cumulative: error after each step of assigning ops, the least harmful first: a curve of
            ``(ops quantized, error)``.
        fp16_bytes, bytes_moved: what the plan moves in FP16, and with the assignment, for the first
            call's shapes; None where it does not build, or is never whole.
    """

    table: CalibrationTable
    error: float
    tolerance: float
    trials: tuple[Trial, ...]
    cumulative: tuple[tuple[int, float], ...]
    fp16_bytes: int | None = None
    bytes_moved: int | None = None

    @property
    def assignment(self) -> Mapping[str, str]:
        return self.table.assignment

    def __str__(self) -> str:
        by_op: dict[str, dict[str, Trial]] = {}
        for trial in self.trials:
            by_op.setdefault(trial.op, {})[trial.precision] = trial
        kinds = [kind for kind in PRECISIONS if any(kind in found for found in by_op.values())]
        title = f"Error {self.error:.2%} of {self.tolerance:.2%} allowed"
        if self.fp16_bytes and self.bytes_moved:
            share = self.bytes_moved / self.fp16_bytes
            title += (
                f", {format_bytes(self.bytes_moved)} moved of {format_bytes(self.fp16_bytes)} in "
                f"FP16 ({share:.0%})"
            )
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("op", overflow="fold")
        for kind in kinds:
            table.add_column(f"{kind} alone", justify="right")
        table.add_column("chosen")
        for op, found in by_op.items():
            errors = [f"{found[kind].error:.2%}" if kind in found else "" for kind in kinds]
            table.add_row(op, *errors, self.assignment.get(op, "fp16"))
        console = Console(width=120, color_system=None)
        with console.capture() as captured:
            console.print(table)
        return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def search_precision(
    model: Callable[..., Any],
    data: Iterable[Any],
    *,
    tolerance: float = 0.01,
    metric: Metric | None = None,
    table: CalibrationTable | None = None,
    precisions: Sequence[str] = PRECISIONS,
    evaluation: int = 16,
    targets: Sequence[str] | str | None = None,
    round_weights: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Search:
    """Find the cheapest precision for each op that keeps outputs within a tolerance.

    Args:
        model: in evaluation mode.
        data: calls of the model, as `calibrate` takes them.
        tolerance: the largest error by the metric.
        metric: takes outputs and what was expected, for one call; returns an error. None: relative
            L2 of the outputs.
        table: of `calibrate`; None: made from ``data``.
        precisions: to choose from; ``"fp8"`` where the cards have it.
        evaluation: the last calls of ``data``, on which errors are measured, and by which nothing
            else is chosen; with less than twice as many calls all serve for both. Bytes are counted
            for the shapes of the first of them.
        targets: cards that bytes are counted for; None: portable.
        round_weights: let weights that are assigned to ``"int8-weight"`` be rounded by GPTQ, each
            column's error made up for by the columns behind it. Their rounded values are written to
            the model, in place: save its ``state_dict`` together with the table.
        progress: called after each op tried, with the number done and in all.

    Returns:
        The assignment in a table for ``precision="auto"``, and how it came about.

    Raises:
        OptionError: an argument is not valid.
        CalibrationError: see `calibrate`; or the model is captured as several graphs.
        FlavourError: the installed TensorRT does not tell what its plans move.
    """
    if not lists_kernels():
        raise FlavourError(
            "search_precision compares the bytes that plans move, and the installed TensorRT does "
            "not tell them: install TensorRT for RTX for the search, whose builder needs no GPU "
            "(pip install tensorrt-rtx), and use its table with either"
        )
    real = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not real or not tolerance > 0:
        raise OptionError(f"tolerance={tolerance!r} must be a number above zero")
    Options.parse({"targets": targets})
    check_evaluation(model)
    for kind in precisions:
        if kind not in _BITS or kind == "fp16":
            raise OptionError(f"precisions holds {kind!r}, which is no quantized precision")
    held = list(calls(data))
    if round_weights:
        check_weights(model)
    if isinstance(evaluation, bool) or not isinstance(evaluation, int) or evaluation < 1:
        raise OptionError(f"evaluation={evaluation!r} must be a number of calls, 1 or more")
    # What scales and roundings were fitted to says little of the errors on other data.
    apart = len(held) > 2 * evaluation
    fitted, judged = (held[:-evaluation], held[-evaluation:]) if apart else (held, held)
    if table is None:
        table = calibrate(model, fitted, weights="int8")
    options = {"precision": "fp16", "targets": targets, "calibration": table}
    work = _Work(judged, Options.parse(options), table, metric or relative_l2)
    with compiled_for_now(model, work.backend) as work.call:
        work.expected = work.outputs()
        if round_weights:
            work.instead = rounded_weights(model, fitted, work.points, table)
        found = _Searching(work, tolerance, precisions, progress).run()
    if round_weights:
        written = write_weights(work.points, work.instead, found.assignment)
        graphs = tuple(
            {
                name: written[name].signature() if name in written else entry
                for name, entry in graph.items()
            }
            for graph in found.table.graphs
        )
        found = dataclasses.replace(found, table=dataclasses.replace(found.table, graphs=graphs))
    return found


class _Work(Session):
    """Runs a model with any assignment, in PyTorch, from one capture for each shape."""

    def __init__(
        self,
        held: Sequence[tuple[tuple[Any, ...], dict[str, Any]]],
        options: Options,
        table: CalibrationTable,
        metric: Metric,
    ) -> None:
        super().__init__(options, "reference", False)
        self.table, self.metric, self.held = table, metric, held
        self.points: dict[str, Point] = {}
        self.assignment: Mapping[str, str] = {}
        self.running: list[_Again] = []
        self.known: dict[tuple[Any, ...], Quantized] = {}
        self.instead: dict[tuple[str, str], torch.Tensor] = {}
        self.call: Callable[..., Any]
        self.expected: list[Any] = []

    def backend(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(self, graph, examples)

    def compile(self, program: Program, spans: Any = None) -> Any:
        self._name(program)
        points = points_of(program)
        self.table.check({point.name: point.signature() for point in points})
        self.points.update({point.name: point for point in points})
        again = _Again(self, program)
        self.running.append(again)
        return again

    def outputs(self) -> list[Any]:
        with torch.no_grad():
            return [self.call(*args, **kwargs) for args, kwargs in self.held]

    def error(self, assignment: Mapping[str, str]) -> float:
        """Return the mean error over the held calls."""
        self.assignment = assignment
        for again in self.running:
            again.current = None
        got = self.outputs()
        errors = [self.metric(a, b) for a, b in zip(got, self.expected, strict=True)]
        return sum(errors) / len(errors)

    def bytes_moved(self, assignment: Mapping[str, str]) -> int | None:
        """Return the bytes that the plans of an assignment move; None where they do not build."""
        own = self.first_points
        part = {name: kind for name, kind in assignment.items() if name in own}
        try:
            networks = self._networks(self.running[0].program.copy(), part, {})
            reports = [trial_report(lowered, self.settings) for lowered in networks]
        except (BuildError, LoweringError):
            return None
        return total(report.bytes_moved for report in reports)

    @property
    def first_points(self) -> dict[str, Point]:
        """The points of the graph that plans are built of: that of the first call."""
        return {point.name: point for point in points_of(self.running[0].program)}


class _Again:
    """A Program that is quantized anew whenever the assignment changes."""

    def __init__(self, work: _Work, program: Program) -> None:
        self.work, self.program = work, program
        self.current: Executable | None = None
        self.first = self._make({})

    def attempt(self, args: Sequence[Any]) -> list[Any] | None:
        return self(args) if self.first.frozen.are_current(args) else None

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        if self.current is None:
            self.current = self._make(self.work.assignment)
        return self.current(args)

    def _make(self, assignment: Mapping[str, str]) -> Executable:
        program = self.program.copy()
        work = self.work
        points = points_of(program)
        quantize(program, points, assignment, work.table, work.known, work.instead)
        partition = divide(program, lambda node: "precisions are tried", None)
        steps = [(segment, eager_runner(program, segment)) for segment in partition.segments]
        return Executable.of(program, steps)


class _Searching:
    def __init__(
        self,
        work: _Work,
        tolerance: float,
        precisions: Sequence[str],
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.work, self.tolerance, self.progress = work, tolerance, progress
        self.precisions = sorted(precisions, key=lambda kind: _BITS[kind])
        if not work.points:
            raise CalibrationError("the model has nothing that could be quantized")

    def run(self) -> Search:
        trials = self.alone()
        best: dict[str, str] = {}
        error = 0.0
        # Errors of single ops add up as if they were independent: their squares do, about.
        low, high = 0.0, 4.0 * self.tolerance
        for turn in range(_ROUNDS):
            budget = (low + high) / 2 if turn else high
            candidate = self.assigned(trials, budget)
            met = self.work.error(candidate)
            if met > self.tolerance:
                high = budget
                continue
            if self.saved(trials, candidate) >= self.saved(trials, best):
                best, error = candidate, met
            if not turn:
                break
            low = budget
        best, error = self.with_residuals(best, error)
        return Search(
            dataclasses.replace(self.work.table, assignment=self.whole(best)),
            error,
            self.tolerance,
            tuple(trials),
            tuple(self.curve(trials, best)),
            self.work.bytes_moved({}),
            self.work.bytes_moved(best),
        )

    def with_residuals(
        self, assignment: dict[str, str], error: float
    ) -> tuple[dict[str, str], float]:
        """Let additions read rounded values where products do, if that is cheaper and within."""
        points = self.work.points
        kinds = {
            points[name].operands[0][0]: kind
            for name, kind in assignment.items()
            if kind in ROUNDING and points[name].op in ("linear", "convolution")
        }
        more = dict(assignment)
        for point in points.values():
            if point.op == "residual" and point.operands[0][0] in kinds:
                more[point.name] = kinds[point.operands[0][0]]
        if more == assignment:
            return assignment, error
        before, after = self.work.bytes_moved(assignment), self.work.bytes_moved(more)
        met = self.work.error(more)
        if met > self.tolerance or before is None or after is None or after >= before:
            return assignment, error
        return more, met

    def alone(self) -> list[Trial]:
        """Measure each op in each precision that it can have and that saves bytes, alone."""
        saved = {kind: self.savings(kind) for kind in self.precisions}
        wanted = [(name, kind) for kind, found in saved.items() for name in found]
        trials = []
        for done, (name, kind) in enumerate(wanted, 1):
            error = self.work.error({name: kind})
            trials.append(Trial(name, kind, error, saved[kind][name]))
            if self.progress is not None:
                self.progress(done, len(wanted))
        return trials

    def savings(self, kind: str) -> dict[str, int]:
        """Return for each op that saves bytes in a precision how many."""
        points = self.work.first_points
        able = {
            name: kind
            for name, point in points.items()
            if point.op != "residual" and refusal(point, kind, self.work.table) is None
        }
        groups: dict[str, list[str]] = {}
        for name in able:
            groups.setdefault(group_of(points[name]), []).append(name)
        uniform = self.work.bytes_moved(able) if able else None
        found: dict[str, int] = {}
        for names in groups.values():
            without = {name: kind for name in able if name not in names}
            moved = self.work.bytes_moved(without)
            if uniform is None or moved is None or moved <= uniform:
                continue
            found.update(dict.fromkeys(names, (moved - uniform) // len(names)))
        return found

    def assigned(self, trials: Sequence[Trial], budget: float) -> dict[str, str]:
        """Assign so that the single errors' squares sum up to no more than the budget's.

        The step that adds the least square for each byte it saves comes first.
        """
        left = budget**2
        chosen: dict[str, Trial] = {}
        while True:
            steps = []
            for trial in trials:
                now = chosen.get(trial.op)
                gain = trial.saved - (now.saved if now else 0)
                more = trial.error**2 - (now.error**2 if now else 0.0)
                if gain > 0 and more <= left:
                    steps.append((max(more, 0.0) / gain, -gain, trial.op, trial))
            if not steps:
                return {op: trial.precision for op, trial in chosen.items()}
            trial = min(steps, key=lambda step: step[:3])[3]
            before = chosen.get(trial.op)
            left -= trial.error**2 - (before.error**2 if before else 0.0)
            chosen[trial.op] = trial

    def whole(self, assignment: Mapping[str, str]) -> dict[str, str]:
        """Name the ops that stay in FP16 too: a person who changes the table finds them there."""
        return {name: assignment.get(name, "fp16") for name in self.work.points}

    def saved(self, trials: Sequence[Trial], assignment: Mapping[str, str]) -> int:
        return sum(trial.saved for trial in trials if assignment.get(trial.op) == trial.precision)

    def curve(
        self, trials: Sequence[Trial], assignment: Mapping[str, str]
    ) -> Iterable[tuple[int, float]]:
        """Yield the error as ops of the assignment are quantized one after the other."""
        chosen = [trial for trial in trials if assignment.get(trial.op) == trial.precision]
        chosen.sort(key=lambda trial: trial.error)
        step = max(1, len(chosen) // 16)
        for count in range(step, len(chosen) + 1, step):
            part = {trial.op: trial.precision for trial in chosen[:count]}
            yield count, self.work.error(part)
