"""Does a model still give the same answers? Captured, lowered, built, evaluated, compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from singlecard.engine.build import Engine
from singlecard.engine.plan_report import PlanReport
from singlecard.lowering.guards import Guard
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.partition import Fallback
from singlecard.placement import Placement
from singlecard.report.arguments import copied
from singlecard.report.doors import enter
from singlecard.report.guards import guard_dicts
from singlecard.report.measure import run_compiled
from singlecard.report.quantized import placement_dict
from singlecard.session import Session
from singlecard.unmatched import tell_of_all


@dataclass(frozen=True)
class Comparison:
    """How far outputs are from what was expected, over all floating-point outputs.

    Attributes:
        max_abs_error: largest absolute difference; infinite where shapes or other values differ.
        max_rel_error: largest difference relative to the largest expected magnitude of its output.
        relative_l2: norm of the difference over norm of the expected, both in float64.
        mismatch: one sentence where types, shapes or structure differ.
    """

    max_abs_error: float
    max_rel_error: float
    relative_l2: float
    mismatch: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        coverage: share of the model's ops that engines compute, 0 to 1.
        fallback: the ops left to PyTorch, as ``(op, reason)``.
        engines: number of engines.
        built: number of engines built just now; the others came from the cache.
        ops: number of ops that were captured.
        max_abs_error, max_rel_error, relative_l2, mismatch: see `Comparison`.
        outputs: what the network's arithmetic gives.
        expected: what eager PyTorch gives.
        plans: the plan report of each engine.
        timings: seconds by stage.
        fallback_lines: of each op in ``fallback``, the line of the model that it comes from, as
            ``file:line: code``, or "".
        placements: for each graph that was to be quantized, what became of each op, and why.
        guards: the attentions that are guarded against rows that a mask may hide, and the cost.
    """

    coverage: float
    fallback: list[tuple[str, str]]
    engines: int
    built: int
    ops: int
    max_abs_error: float
    max_rel_error: float
    relative_l2: float
    mismatch: str | None
    outputs: Any = field(repr=False)
    expected: Any = field(repr=False)
    plans: list[PlanReport] = field(repr=False)
    timings: dict[str, float] = field(repr=False)
    fallback_lines: list[str] = field(default_factory=list, repr=False)
    placements: tuple[Placement, ...] = field(default=(), repr=False)
    guards: tuple[Guard, ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the tensors, as plain values."""
        return {
            "coverage": self.coverage,
            "ops": self.ops,
            "fallback": self.fallback,
            "fallback_lines": self.fallback_lines,
            "engines": self.engines,
            "built": self.built,
            "kernels": [plan.kernel_count for plan in self.plans],
            "engine_bytes": [plan.engine_bytes for plan in self.plans],
            "bytes_moved": [plan.bytes_moved for plan in self.plans],
            "scratch_bytes": [plan.scratch_bytes for plan in self.plans],
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
            "relative_l2": self.relative_l2,
            "mismatch": self.mismatch,
            "quantization": [placement_dict(item) for item in self.placements],
            "guards": guard_dicts(self.guards),
            "timings": self.timings,
        }

    def __str__(self) -> str:
        from singlecard.report.tables import text_of, verify_table

        return text_of(verify_table(self))


@dataclass(frozen=True)
class Compiled:
    """A model captured, lowered and built: the ground of `verify` and `explain`."""

    outputs: Any
    fallback: tuple[Fallback, ...]
    engines: tuple[Engine, ...]
    ops: int
    lowered_ops: int
    timings: dict[str, float]
    placements: tuple[Placement, ...] = ()
    guards: tuple[Guard, ...] = ()

    @property
    def coverage(self) -> float:
        if not self.ops:  # nothing is left to PyTorch, unless Dynamo kept it from coming here
            return float(not self.fallback)
        return self.lowered_ops / self.ops


def compile_model(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    options: Mapping[str, Any] | Options | None,
    execution: str,
    progress: Progress | None,
) -> Compiled:
    """Capture, lower and build a model with example arguments, and run it once.

    Raises:
        OptionError: an option, the model, its arguments or a range is not valid.
    """
    entrance = enter(module, args, kwargs, dynamic_shapes, options)
    session = Session(entrance.options, execution, True, progress)
    started = time.perf_counter()
    outputs = run_compiled(session, entrance.call.copied(), entrance.axes)
    total = time.perf_counter() - started
    if len(session.graphs) > 1:
        captured = [graph.unmatched for graph in session.graphs if graph.partition is not None]
        tell_of_all(captured, session.options)
    timings = dict(session.timings)
    timings["total"] = total
    return Compiled(
        outputs,
        tuple(item for graph in session.graphs for item in graph.fallback),
        tuple(engine for graph in session.graphs for engine in graph.engines),
        sum(graph.ops for graph in session.graphs),
        sum(graph.lowered_ops for graph in session.graphs),
        timings,
        tuple(graph.placement for graph in session.graphs if graph.placement is not None),
        tuple(guard for graph in session.graphs for guard in graph.guards),
    )


def verify(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    options: Mapping[str, Any] | Options | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare a model's answers through singlecard with eager PyTorch's, without a GPU.

    The model is captured, lowered and really built for ``options["targets"]`` (portable where none
    are given); the built networks are evaluated by the reference evaluator.

    Args:
        module: a model, or any function of tensors.
        args: example arguments; they are copied, and not changed.
        kwargs: example keyword arguments.
        dynamic_shapes: axes that vary, and between which sizes: a dict from parameters to
            ``{axis: (min, max)}`` or ``{axis: (min, opt, max)}``, or a sequence of these in the
            order of arguments; containers take a nest like themselves. All that ``torch.export``
            takes is taken, too. docs/offline.md lists every form.
        options: see `singlecard.Options`.
        progress: called with the builder's phase, the steps done and the steps in all.

    Raises:
        OptionError: an option, an argument or a range is not valid, or the model is in training
            mode.
        SinglecardError: with ``strict=True``, whatever stands in the way of lowering everything.

    Example:
        >>> import torch, singlecard
        >>> report = singlecard.verify(torch.nn.Linear(8, 4).eval(), (torch.ones(2, 8),))
        >>> report.coverage
        1.0
    """
    with torch.random.fork_rng():
        compiled = compile_model(
            module, args, kwargs, dynamic_shapes, options, "reference", progress
        )
    with torch.random.fork_rng(), torch.no_grad():
        expected = module(*copied(tuple(args)), **copied(dict(kwargs or {})))
    result = compare(compiled.outputs, expected)
    return VerifyReport(
        coverage=compiled.coverage,
        fallback=[(item.op, item.reason) for item in compiled.fallback],
        engines=len(compiled.engines),
        built=sum(engine.built for engine in compiled.engines),
        ops=compiled.ops,
        max_abs_error=result.max_abs_error,
        max_rel_error=result.max_rel_error,
        relative_l2=result.relative_l2,
        mismatch=result.mismatch,
        outputs=compiled.outputs,
        expected=expected,
        plans=[engine.report for engine in compiled.engines],
        timings=compiled.timings,
        fallback_lines=[item.line for item in compiled.fallback],
        placements=compiled.placements,
        guards=compiled.guards,
    )


def compare(outputs: Any, expected: Any) -> Comparison:
    """Compare two nests of outputs. NaN equals NaN, and infinities must agree."""
    got, got_spec = pytree.tree_flatten(outputs)
    want, want_spec = pytree.tree_flatten(expected)
    infinite = float("inf")
    if got_spec != want_spec:
        return Comparison(infinite, infinite, infinite, "the outputs have another structure")
    largest, relative, squares, norm = 0.0, 0.0, 0.0, 0.0
    for place, (a, b) in enumerate(zip(got, want, strict=True)):
        problem = _mismatch(a, b)
        if problem:
            return Comparison(infinite, infinite, infinite, f"output {place} {problem}")
        if not isinstance(b, torch.Tensor) or not b.numel():
            continue
        x, y = (value.detach().to("cpu", torch.float64) for value in (a, b))
        finite = torch.isfinite(y)
        if not torch.equal(x[~finite].nan_to_num(), y[~finite].nan_to_num()) or not bool(
            torch.isfinite(x[finite]).all()
        ):
            text = f"output {place} differs in its NaN or infinite values"
            return Comparison(infinite, infinite, infinite, text)
        difference, y = (x - y)[finite], y[finite]
        if difference.numel():
            error = float(difference.abs().max())
            largest = max(largest, error)
            relative = max(relative, error / max(float(y.abs().max()), 1e-30))
        squares += float(difference.square().sum())
        norm += float(y.square().sum())
    l2 = (squares / norm) ** 0.5 if norm else squares**0.5
    return Comparison(largest, relative, l2)


def _mismatch(got: Any, want: Any) -> str | None:
    if isinstance(want, torch.Tensor) != isinstance(got, torch.Tensor):
        return f"is {type(got).__name__} instead of {type(want).__name__}"
    if not isinstance(want, torch.Tensor):
        return None if got == want else f"is {got!r} instead of {want!r}"
    if got.dtype != want.dtype:
        return f"has type {got.dtype} instead of {want.dtype}"
    if got.shape != want.shape:
        return f"has shape {list(got.shape)} instead of {list(want.shape)}"
    return None
