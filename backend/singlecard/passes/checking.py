"""Passes are checked by what they do: a Program runs in PyTorch before and after each of them.

Programs run in float64, so that what a rewrite loses is told from what arithmetic rounds; where
that cannot be, in their own types. See `singlecard.passes.simplify` for how to switch it on.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from singlecard.capture.layouts import compute
from singlecard.capture.program import Program, with_effects
from singlecard.errors import OptionError, RewriteError
from singlecard.host_memory import on_cpu
from singlecard.lowering.call import tensors_in
from singlecard.observe.topics import topic
from singlecard.passes.rule import EXACT, Exactness, Rule, apply_rule, exactness_of, rule_name
from singlecard.passes.samples import Sample, samples_of

aten = torch.ops.aten

#: Environment variable: what to check while compiling.
VARIABLE = "SINGLECARD_CHECK"

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_RANDOM = torch.Tag.nondeterministic_seeded

#: Shares of a result's largest number that are nobody's fault: of arithmetic in float64, and, as
#: a multiple of the root of a type's precision, of constants rounded to it and of its arithmetic.
_IN_DOUBLE, _ROUNDINGS, _OWN_ROUNDINGS = 1e-8, 1.0, 4.0
#: What a step of a quantization may make of a result, where a value lies between two steps.
_STEPS = 0.1
#: Results that are smaller than this are compared as if their largest number were this.
_LEAST_SCALE = 1e-2
#: Share of whole numbers and truth values that may change where a value lies at a boundary.
_BOUNDARY = 0.05


@dataclass(frozen=True)
class Pass:
    """A step of a simplification: a list of rules, or one function over the whole graph.

    Attributes:
        name: of the step.
        run: does it.
        rules: what it consists of, if these are rules.
        exactness: of what it does beside them.
        gives_types: whether it gives values other types: then constants are tried in float64 as all
            the rest, or what rounding them decides, such as signs, would be blamed on it.
    """

    name: str
    run: Callable[[Program], None]
    rules: tuple[Rule, ...] = ()
    exactness: Exactness = EXACT
    gives_types: bool = False

    @classmethod
    def of_rules(cls, name: str, rules: Sequence[Rule]) -> Pass:
        def run(program: Program) -> None:
            for rule in rules:
                for _ in apply_rule(program, rule):
                    pass

        return cls(name, run, tuple(rules))

    def exactness_with(self, fired: set[str]) -> Exactness:
        """Return how exact a pass is in which these rules fired."""
        kinds = [exactness_of(rule) for rule in self.rules if rule_name(rule) in fired]
        kinds.append(self.exactness)
        return Exactness(any(kind.rounds for kind in kinds), any(kind.steps for kind in kinds))


def is_asked() -> bool:
    """Tell whether passes shall be checked.

    Raises:
        OptionError: the environment asks for something that is not checked.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "passes"):
        raise OptionError(f"{VARIABLE} is {asked!r}: write {VARIABLE}=passes, or leave it out")
    return asked == "passes"


def run_passes(program: Program, passes: Sequence[Pass]) -> None:
    """Run passes in order, checked where the environment asks for it.

    Raises:
        RewriteError: a pass changed an answer; names the pass, the rule, and the op it fired at.
    """
    if not is_asked():
        for step in passes:
            step.run(program)
        return
    checker = Checker(program, own=not any(step.gives_types for step in passes))
    for step in passes:
        checker.watch(program, step)


class Checker:
    """What a Program answers to samples, held against what it answers after each pass."""

    def __init__(self, program: Program, own: bool = True) -> None:
        """Try a Program.

        Args:
            program: as it is before all passes.
            own: whether what constants alone decide is computed in its own types.
        """
        self.own = own
        self.answers: list[tuple[Sample, bool, list[Any]]] = []
        if _unchecked(program):
            return
        for sample in samples_of(program):
            for double in (True, False):
                try:
                    found = run_program(program, sample.inputs, double, own)
                except Exception as error:  # places out of range, types that an op does not take
                    topic("capture").debug("%s cannot be tried: %s", sample.name, error)
                    continue
                self.answers.append((sample, double, found))
                break

    def watch(self, program: Program, step: Pass) -> None:
        """Run a pass, and compare the answers before and after.

        Raises:
            RewriteError: they differ.
        """
        before, shape, start = program.copy(), _printed(program), len(program.trace)
        step.run(program)
        if not self.answers or _printed(program) == shape:
            return
        fired = {line.partition(" at ")[0] for line in program.trace[start:]}
        problem, answers = self.problem(program, step.exactness_with(fired))
        if problem is None:
            self.answers = answers
            return
        self.blame(before, step)
        raise RewriteError(step.name, None, None, problem)

    def blame(self, before: Program, step: Pass) -> None:
        """Run a pass rule by rule, and op by op; raise for the first that changed an answer."""
        for rule in step.rules:
            for place in apply_rule(before, rule):
                problem, _ = self.problem(before, exactness_of(rule))
                if problem is not None:
                    raise RewriteError(step.name, rule_name(rule), place, problem)

    def problem(
        self, program: Program, exactness: Exactness
    ) -> tuple[str | None, list[tuple[Sample, bool, list[Any]]]]:
        """Return what differs from the answers before, in words, and the answers now."""
        now = []
        for sample, double, want in self.answers:
            try:
                got = run_program(program, sample.inputs, double, self.own)
            except Exception as error:
                return f"{sample.name}: it runs no more: {type(error).__name__}: {error}", []
            allowed = _allowed(program, exactness, double)
            for place, (a, b) in enumerate(zip(got, want, strict=True)):
                words = difference(a, b, allowed)
                if words is not None:
                    return f"{sample.name}: result {place} {words}", []
            now.append((sample, double, got))
        return None, now


def _printed(program: Program) -> list[Any]:
    return [(n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in program.graph.nodes]


def _unchecked(program: Program) -> bool:
    """Tell whether a Program's answers are not its inputs' alone."""
    for node in program.calls():
        target = node.target
        if target is with_effects or isinstance(target, torch._ops.HigherOrderOperator):
            return True
        if isinstance(target, torch._ops.OpOverload) and _RANDOM in target.tags:
            return True
    return False


def _allowed(program: Program, exactness: Exactness, double: bool) -> float:
    types = {
        value.dtype
        for node in program.graph.nodes
        for value in tensors_in(node.meta.get("val"))
        if value.dtype in _FLOATS
    }
    precision = max((torch.finfo(kind).eps for kind in types), default=0.0) ** 0.5
    allowed = _IN_DOUBLE if double else _OWN_ROUNDINGS * precision
    if exactness.rounds:
        allowed = max(allowed, _ROUNDINGS * precision)
    return max(allowed, _STEPS) if exactness.steps else allowed


def difference(got: Any, want: Any, allowed: float) -> str | None:
    """Return how two results differ by more than a share of their largest number, or None."""
    if not isinstance(want, torch.Tensor):
        return None if got == want else f"is {got}, and was {want}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, and had {list(want.shape)}"
    if not want.numel():
        return None
    if not want.dtype.is_floating_point and not want.dtype.is_complex:
        share = float((got != want).double().mean())
        return None if share <= _BOUNDARY else f"changed in {share:.0%} of its elements"
    a, b = got.to(want.dtype), want
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()) or not torch.equal(
        a[~finite].nan_to_num(), b[~finite].nan_to_num()
    ):
        return "differs in its NaN or infinite values"
    if not bool(finite.any()):
        return None
    scale = max(float(b[finite].abs().max()), _LEAST_SCALE)
    error = float((a[finite] - b[finite]).abs().max()) / scale
    return None if error <= allowed else f"moved by {error:.1e}, where {allowed:.1e} is allowed"


@torch.no_grad()
def run_program(
    program: Program, inputs: Sequence[Any], double: bool, own: bool = True
) -> list[Any]:
    """Run a Program op by op on the CPU; return its outputs.

    Args:
        program: constants may lie anywhere.
        inputs: for each placeholder, in order; they are not changed.
        double: whether floating-point values are float64, whatever their type.
        own: whether what constants alone decide is computed in its own types all the same.
    """
    values: dict[fx.Node, Any] = {}
    given: Iterator[Any] = iter(inputs)
    last = {arg: node for node in program.graph.nodes for arg in node.all_input_nodes}
    known = _known(program) if double and own else set()

    def of(arg: fx.Node) -> Any:
        if arg not in values:
            held = program.constant(arg)
            assert held is not None
            values[arg] = on_cpu(held.detach())
        return values[arg]

    def wide(arg: fx.Node) -> Any:
        return pytree.tree_map_only(torch.Tensor, _wide, of(arg)) if double else of(arg)

    with _disable_current_modes():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                values[node] = value.clone() if isinstance(value, torch.Tensor) else value
            elif node.op == "call_function":
                is_own = node in known
                values[node] = _run(node, of if is_own else wide, double and not is_own)
                for arg in node.all_input_nodes:
                    if last[arg] is node:
                        values.pop(arg, None)
            elif node.op == "output":
                results = fx.map_arg(node.args[0], wide)
        return list(pytree.tree_leaves(list(results)))


def _known(program: Program) -> set[fx.Node]:
    """Return what constants alone decide: passes compute it in its own types, and keep it."""
    known: set[fx.Node] = set()
    for node in program.graph.nodes:
        is_known = node.op == "get_attr"
        if node.op == "call_function" and node.all_input_nodes:
            is_known = known.issuperset(node.all_input_nodes)
        if is_known:
            known.add(node)
    return known


def _run(node: fx.Node, of: Callable[[fx.Node], Any], double: bool) -> Any:
    target: Any = node.target
    args: Any = fx.map_arg(node.args, of)
    kwargs = dict(fx.map_arg(node.kwargs, of))
    if target is operator.getitem:
        return args[0][args[1]]
    if double:
        args, kwargs = pytree.tree_map(_wide_type, (tuple(args), kwargs))
        if target in (aten._softmax.default, aten._log_softmax.default):
            args = (*args[:2], False)  # of a half, to FP32
    return compute(target, args, kwargs)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.dtype in _FLOATS else value


def _wide_type(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _FLOATS else value
