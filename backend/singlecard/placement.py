"""Which points of a Program are quantized: those whose quantization the plan rewards.

Quantizing an op can cost more than it saves: a kernel more, a result written in FP32, weights read
through memory. What it does depends on its neighbours too, for the builder fuses across them. So
whole plans are built and read: the FP16 plan, the plan with everything quantized, and plans with
one group of ops left out of it, for as long as leaving one out makes the plan cheaper. A group is
an op of a layer with the same op of all other layers, and what reads the same tensor.

Full TensorRT does not say what its plans do in a form that is read here. With it nothing can be
compared, and what was asked for is taken, as long as it builds: to take FP16 instead would be to
refuse INT8 and FP8 altogether. Its builder measures kernels on the card, and every decision says
that no plans were compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import fx

from singlecard.engine.cards import Card
from singlecard.engine.cost import Cost, cost_of
from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.precision.points import Point
from singlecard.precision.quantize import ROUNDING, read_rounded, refusal
from singlecard.precision.table import CalibrationTable

#: Builds the plans of an assignment; None where they do not build.
Build = Callable[[Mapping[str, str]], Sequence[PlanReport] | None]

#: Precisions that are more than a type: what makes an assignment.
ASSIGNABLE = frozenset({"int8", "fp8", "int8-weight", "int4-weight"})

#: Why a residual operand is left as it is.
NOT_ROUNDED = "no product reads this value rounded, so that rounding it would be a kernel more"

#: Why a point is quantized without a comparison.
NOT_COMPARED = (
    "taken as asked, without a comparison: full TensorRT's list of kernels is not read, so measure "
    "on the card whether it pays"
)

NOT_BUILT = "the quantized network does not build"

#: Types of arithmetic that a quantized product really has.
_REAL = frozenset({"Int8", "FP8"})

#: What a kernel's list of ops says for a point's op, where it is not the same word.
_WORDS = {"product": ("mm", "matmul")}


@dataclass(frozen=True)
class Decision:
    """What became of one point.

    Attributes:
        name: of the point.
        asked: the precision that was asked for.
        taken: the precision that it has.
        reason: one sentence where they differ or no plans could be compared, else "".
    """

    name: str
    asked: str
    taken: str
    reason: str = ""


@dataclass(frozen=True)
class Placement:
    """An assignment, and how it came about.

    Attributes:
        decisions: one for each point.
        before: cost of the plan with nothing quantized; None where it was not built or is not
            known.
        after: cost of the plan as decided; None where it is not known.
        trials: number of plans that were built and read.
    """

    decisions: tuple[Decision, ...]
    before: Cost | None = None
    after: Cost | None = None
    trials: int = 0

    @property
    def assignment(self) -> dict[str, str]:
        """The precision of each point that is quantized."""
        return {
            item.name: item.taken for item in self.decisions if item.taken not in ("fp16", "fp32")
        }


def placement_to_dict(placement: Placement) -> dict[str, Any]:
    """Return a placement as plain values; `placement_from_dict` makes it again."""
    return dataclasses.asdict(placement)


def placement_from_dict(values: Any) -> Placement | None:
    """Return the placement of plain values, or None where they are of another making."""
    try:
        before, after = (_cost_from(values[key]) for key in ("before", "after"))
        decisions = tuple(Decision(**item) for item in values["decisions"])
        return Placement(decisions, before, after, int(values["trials"]))
    except (KeyError, TypeError, ValueError):
        return None


def _cost_from(values: Any) -> Cost | None:
    return None if values is None else Cost(**{**values, "seconds": tuple(values["seconds"])})


def decide(
    points: Sequence[Point],
    precision: str,
    table: CalibrationTable | None,
    left_out: Callable[[fx.Node], str | None],
    kept_fp32: Set[fx.Node] = frozenset(),
) -> list[Decision]:
    """Return for each point the precision that it could have; plans are not looked at yet.

    Args:
        points: of a Program.
        precision: what was asked for, or ``"auto"`` for what the table assigns.
        table: calibration; what it assigns to FP16 or FP32 stays so under any precision.
        left_out: tells why an op stays in PyTorch.
        kept_fp32: ops that are to compute in FP32.
    """
    decisions = []
    for point in points:
        given = table.assignment.get(point.name) if table else None
        if point.op == "residual" and given is None and precision not in ROUNDING:
            continue
        asked = (given or "fp16") if precision == "auto" else precision
        kept = given if given in ("fp16", "fp32") else None
        reason = left_out(point.node)
        if reason is not None:
            decisions.append(Decision(point.name, asked, "fp32", f"it stays in PyTorch: {reason}"))
        elif point.node in kept_fp32:
            words = (
                "it computes in FP32: keep_fp32 names it, its values leave FP16's range, or they "
                "are places, angles or what is compared"
            )
            decisions.append(Decision(point.name, asked, "fp32", words))
        elif asked in ("fp16", "fp32"):
            decisions.append(Decision(point.name, asked, asked))
        elif kept is not None:
            words = "the calibration table keeps it there"
            decisions.append(Decision(point.name, asked, kept, words))
        else:
            reason = refusal(point, asked, table)
            taken = asked if reason is None else "fp16"
            decisions.append(Decision(point.name, asked, taken, reason or ""))
    chosen = {item.name: item.taken for item in decisions if item.taken in ASSIGNABLE}
    read = read_rounded(points, chosen)
    return [
        Decision(item.name, item.asked, "fp16", NOT_ROUNDED)
        if item.name in chosen and item.name not in read
        else item
        for item in decisions
    ]


def group_of(point: Point) -> str:
    """Return what is decided together: an op of all layers, and what reads the same tensor."""
    name = point.operands[0][0].rpartition("/")[0] if point.operands else point.name
    parts = ("*" if part.isdigit() else part for part in name.split("."))
    width = "" if point.weight is None else f" {'x'.join(map(str, point.weight.shape[1:]))}"
    return f"{'.'.join(parts)} ({point.op}{width})"


def place(
    points: Sequence[Point],
    candidates: Mapping[str, str],
    build: Build,
    cards: Sequence[Card],
    trials: int,
) -> Placement:
    """Choose which candidates are quantized.

    Args:
        points: all points.
        candidates: for each point that may be quantized, by name, its precision.
        build: makes the plans of an assignment.
        cards: whose time counts.
        trials: plans to build at most.

    Returns:
        A decision for each candidate.
    """
    return _Search(points, candidates, build, cards, trials).run()


@dataclass(frozen=True)
class _Trial:
    """What the plans of an assignment say.

    Attributes:
        builds: whether they build.
        cost: None where they do not build, or nobody knows it.
        simulated: groups whose products are computed in a wider type, with that type.
    """

    builds: bool
    cost: Cost | None
    simulated: Mapping[str, str]


class _Search:
    def __init__(
        self,
        points: Sequence[Point],
        candidates: Mapping[str, str],
        build: Build,
        cards: Sequence[Card],
        trials: int,
    ) -> None:
        self.points = {point.name: point for point in points}
        self.candidates, self.build, self.cards = candidates, build, cards
        self.most = trials
        self.groups: dict[str, list[str]] = {}
        for point in points:
            if point.name in candidates:
                self.groups.setdefault(group_of(point), []).append(point.name)
        self.reasons: dict[str, str] = {}
        self.base: Cost | None = None
        self.unread = False
        #: What was built, by assignment: no plan is built twice, and none is kept.
        self.tried: dict[frozenset[tuple[str, str]], _Trial] = {}

    def run(self) -> Placement:
        chosen = frozenset(self.groups)
        best = self.cost(chosen) if chosen and self.can_try(chosen) else None
        if self.unread:  # no other plan would be known either: none is built
            return self.placement(chosen, None)
        if not self.can_try(frozenset()):
            for group in chosen:
                self.note(group, _not_tried(self.most))
            return self.placement(frozenset(), None)
        self.base = self.cost(frozenset())
        if self.unread:
            for group in chosen:
                self.note(group, NOT_BUILT)
            return self.placement(frozenset(), None)
        if not chosen:
            best = self.base
        if self.base is None:  # nothing to compare with: the caller will see why it does not build
            return self.placement(chosen, best)
        while chosen:
            improved = self.improve(chosen, best)
            if improved is not None:
                chosen, best = improved
                continue
            found = self.trial(chosen).simulated  # of a choice that led to the same assignment
            simulated = {group: found[group] for group in chosen & found.keys()}
            if not simulated or not self.can_try(chosen - simulated.keys()):
                break
            for group, arithmetic in simulated.items():
                self.note(group, f"it would be simulated: the plan multiplies in {arithmetic}")
            chosen -= simulated.keys()
            best = self.cost(chosen)
        if best is None or best.is_slower_than(self.base):
            for group in chosen:
                self.note(group, _slower(best, self.base))
            chosen, best = frozenset(), self.base
        return self.placement(chosen, best)

    def placement(self, chosen: frozenset[str], cost: Cost | None) -> Placement:
        taken = self.assignment(chosen)
        decisions = tuple(
            Decision(name, asked, taken.get(name, "fp16"), self.reason(name, taken))
            for name, asked in self.candidates.items()
        )
        return Placement(decisions, self.base, cost, len(self.tried))

    def reason(self, name: str, taken: Mapping[str, str]) -> str:
        if name in taken and self.unread:
            return NOT_COMPARED
        return self.reasons.get(name, "" if name in taken else NOT_ROUNDED)

    def improve(
        self, chosen: frozenset[str], best: Cost | None
    ) -> tuple[frozenset[str], Cost] | None:
        """Leave out the groups without which the plan is cheaper; None where there is none."""
        base = self.base
        assert base is not None
        now = float("inf") if best is None else best.against(base)
        gains: dict[str, tuple[float, Cost]] = {}
        for group in sorted(chosen):
            if not self.can_try(chosen - {group}):
                break
            cost = self.cost(chosen - {group})
            if cost is not None and cost.against(base) < now:
                gains[group] = (cost.against(base), cost)
        if not gains:
            return None
        first = min(gains, key=lambda group: gains[group][0])
        out, cost = {first}, gains[first][1]
        if len(gains) > 1 and self.can_try(chosen - gains.keys()):
            together = self.cost(chosen - gains.keys())
            if together is not None and together.against(base) <= gains[first][0]:
                out, cost = set(gains), together
        for group in out:
            share = (now - gains[group][0]) * 100
            words = "does not build" if best is None else f"costs {share:.1f} % of the plan's time"
            self.note(group, f"{self.precision(group)} here {words} instead of saving any")
        return chosen - out, cost

    def precision(self, group: str) -> str:
        return self.candidates[self.groups[group][0]]

    def note(self, group: str, reason: str) -> None:
        for name in self.groups[group]:
            self.reasons[name] = reason

    def assignment(self, chosen: frozenset[str]) -> dict[str, str]:
        taken = {
            name: self.candidates[name]
            for group in self.groups
            if group in chosen
            for name in self.groups[group]
        }
        read = read_rounded(self.points.values(), taken)
        return {name: kind for name, kind in taken.items() if name in read}

    def cost(self, chosen: frozenset[str]) -> Cost | None:
        """Return what a choice costs; None where it does not build, or nobody knows (`unread`)."""
        tried = self.trial(chosen)
        self.unread = self.unread or (tried.builds and tried.cost is None)
        return tried.cost

    def can_try(self, chosen: frozenset[str]) -> bool:
        """Tell whether what a choice costs is known, or may still be built."""
        key = frozenset(self.assignment(chosen).items())
        return key in self.tried or len(self.tried) < self.most

    def trial(self, chosen: frozenset[str]) -> _Trial:
        """Build the plans of a choice, if they were not built before: the one place that builds."""
        assignment = self.assignment(chosen)
        key = frozenset(assignment.items())
        if key not in self.tried:
            reports = self.build(assignment)
            if reports is None:
                self.tried[key] = _Trial(False, None, {})
            else:
                cost = cost_of(reports, self.cards)
                self.tried[key] = _Trial(True, cost, self.simulated(chosen, reports))
        return self.tried[key]

    def simulated(self, chosen: frozenset[str], reports: Sequence[PlanReport]) -> dict[str, str]:
        """Return groups whose products the plans compute in a wider type, with that type."""
        multiplying = [
            kernel for report in reports for kernel in report.kernels or () if kernel.arithmetic
        ]
        by_module: dict[str, list[Kernel]] = {}
        for kernel in multiplying:
            for path in dict.fromkeys(kernel.modules):
                by_module.setdefault(path, []).append(kernel)
        found: dict[str, str] = {}
        for group in sorted(chosen):
            if self.precision(group) not in ("int8", "fp8"):
                continue
            for name in self.groups[group]:
                path, _, op = name.partition(":")
                path, op = "" if path == "model" else path, op.partition(".")[0]
                words = _WORDS.get(op, (op,))
                types = {
                    kernel.arithmetic
                    for kernel in by_module.get(path, ())
                    if any(word in made for made in kernel.ops for word in words)
                }
                if types and not types & _REAL:
                    found[group] = " and ".join(sorted(map(str, types)))
        return found


def _not_tried(trials: int) -> str:
    return f"not quantized: a comparison takes two plans, and {trials} may be built"


def _slower(cost: Cost | None, base: Cost) -> str:
    if cost is None:
        return NOT_BUILT
    counts = f"{cost.kernels} kernels for {base.kernels}"
    if not cost.seconds or len(cost.seconds) != len(base.seconds):
        return f"the quantized plan would launch more kernels than the FP16 plan ({counts})"
    most = max(a / b for a, b in zip(cost.seconds, base.seconds, strict=True))
    return (
        f"the quantized plan would take {(most - 1) * 100:.1f} % longer than the FP16 plan on one "
        f"of the cards ({counts})"
    )
