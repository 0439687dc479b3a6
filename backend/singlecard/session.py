"""One compilation from end to end: a Program becomes segments, networks, engines, a callable."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sympy
import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.spans import Triple
from singlecard.engine.build import Engine, get_engine, key_parts
from singlecard.engine.cache import Cache
from singlecard.errors import BuildError, LoweringError
from singlecard.lowering.call import op_name
from singlecard.lowering.cards import target_refusal
from singlecard.lowering.lower import Lowered, NodeRefused, lower
from singlecard.lowering.table import refusal
from singlecard.network.building import BuildSettings, Progress
from singlecard.options import Options
from singlecard.partition import Fallback, Partition, Segment, divide
from singlecard.partition.exclusion import exclusion
from singlecard.passes import simplify
from singlecard.precision.casts import lower_precision
from singlecard.precision.demote import demote_float64
from singlecard.runtime.engine import EngineRunner
from singlecard.runtime.executable import Executable
from singlecard.runtime.ranged import in_range
from singlecard.runtime.runners import Runner, eager_runner, reference_runner
from singlecard.targets import check_types

log = logging.getLogger("singlecard")

_LOW = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class Graph:
    """What became of one captured graph."""

    partition: Partition | None = None
    engines: list[Engine] = field(default_factory=list)
    fallback: list[Fallback] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    ops: int = 0
    lowered_ops: int = 0

    @classmethod
    def left_out(cls, module: fx.GraphModule, reason: str) -> Graph:
        """Return the entry of a graph that stays in PyTorch as a whole."""
        calls = [node for node in module.graph.nodes if node.op.startswith("call_")]
        return cls(fallback=[Fallback(op_name(node), reason) for node in calls], ops=len(calls))


@dataclass
class Session:
    """Options, and what was compiled under them.

    Attributes:
        options: what the caller asked for.
        execution: how answers are made: ``engine``, ``reference`` or ``eager``.
        build: whether engines are built.
        progress: told of the builder's phases.
        graphs: one entry for each graph that was captured.
        timings: seconds by stage: capture, passes, partition, lowering, digest, build.
    """

    options: Options
    execution: str = "reference"
    build: bool = True
    progress: Progress | None = None
    graphs: list[Graph] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] = self.timings.get(stage, 0.0) + time.perf_counter() - started

    @property
    def settings(self) -> BuildSettings:
        options = self.options
        return BuildSettings(
            options.targets or (), options.precision == "tf32", options.workspace_bytes
        )

    def compile(
        self, program: Program, spans: Mapping[sympy.Symbol, Triple] | None = None
    ) -> Executable:
        """Compile a Program; return what runs it.

        Args:
            program: what was captured; it is changed in place.
            spans: smallest, usual and largest values of symbolic sizes, where the user gave them.

        Raises:
            LoweringError, BuildError: only with ``strict=True``.
            TargetError: a target lacks a type that the options ask for.
            CacheError: the cache folder cannot be used.
        """
        graph = Graph()
        self.graphs.append(graph)
        refused: dict[fx.Node, str] = {}

        excluded = exclusion(self.options.exclude_ops, self.options.exclude_modules)

        def reason_of(node: fx.Node) -> str | None:
            return refused.get(node) or excluded(node) or refusal(node)

        def final_reason(node: fx.Node) -> str | None:
            return reason_of(node) or target_refusal(node, self.options.targets or ())

        self._prepare(program, reason_of)
        while True:
            with self.timed("partition"):
                partition = divide(program, final_reason, self.options.min_block_size)
            self._insist(partition.fallback)
            try:
                steps = [
                    self._step(program, segment, graph, spans or {})
                    for segment in partition.segments
                ]
                break
            except _Refused as error:
                graph.engines.clear()
                refused.update(dict.fromkeys(error.nodes, error.reason))
        graph.partition = partition
        graph.ops, graph.lowered_ops = partition.ops, partition.lowered_ops
        graph.fallback = list(partition.fallback)
        graph.trace = program.trace
        self._tell(graph.fallback)
        return Executable(program, steps)

    def _prepare(self, program: Program, reason_of: Callable[[fx.Node], str | None]) -> None:
        low = _LOW.get(self.options.precision)
        if low is not None:
            check_types([self.options.precision], self.options.targets or ())
        with self.timed("passes"):
            if self.options.demote_float64:
                demote_float64(program)
            simplify(program)
            if low is not None:
                stays = {node for node in program.calls() if _stays(node, reason_of)}
                lower_precision(program, low, stays.__contains__)
                simplify(program)

    def _step(
        self,
        program: Program,
        segment: Segment,
        graph: Graph,
        spans: Mapping[sympy.Symbol, Triple],
    ) -> tuple[Segment, Runner]:
        if not segment.lowered:
            return segment, eager_runner(program, segment)
        try:
            with self.timed("lowering"):
                lowered = lower(program, segment, spans)
        except NodeRefused as error:
            raise _Refused([error.node], str(error)) from error
        except Exception as error:
            raise _Refused(segment.nodes, _fault("lowering", error)) from error
        engine = self._engine(lowered, segment) if self.build else None
        if engine is not None:
            graph.engines.append(engine)
        instead = None if self.options.strict else eager_runner(program, segment)
        run: Runner
        if self.execution == "engine":
            assert engine is not None
            run = EngineRunner(engine, lowered, segment)
        else:
            run = reference_runner(lowered, segment)
        return segment, in_range(run, lowered, segment, instead)

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine:
        try:
            with self.timed("digest"):
                parts = key_parts(lowered, self.settings)
            with self.timed("build"):
                cache = Cache(self.options.cache_dir)
                return get_engine(lowered, self.settings, cache, self.progress, parts)
        except (BuildError, LoweringError) as error:
            raise _Refused(segment.nodes, str(error)) from error

    def _insist(self, fallback: Sequence[Fallback]) -> None:
        """Raise where the caller wants everything lowered and something is not."""
        if fallback and self.options.strict:
            first = fallback[0]
            more = f" ({len(fallback) - 1} more ops)" if len(fallback) > 1 else ""
            raise LoweringError(f"{first.reason}{more}. {first.line}".strip())

    def _tell(self, fallback: Sequence[Fallback]) -> None:
        """Log once what stays in PyTorch."""
        for reason in dict.fromkeys(item.reason for item in fallback):
            log.warning("%s: this part stays in PyTorch", reason)


def _stays(node: fx.Node, reason_of: Callable[[fx.Node], str | None]) -> bool:
    return isinstance(node.target, torch._ops.OperatorBase) and reason_of(node) is not None


def _fault(stage: str, error: Exception) -> str:
    if isinstance(error, LoweringError):
        return str(error)
    return f"{stage} failed with {type(error).__name__}: {error}: please report this"


class _Refused(Exception):
    """Ops that must stay in PyTorch after all, found while lowering or building."""

    def __init__(self, nodes: Sequence[fx.Node], reason: str) -> None:
        super().__init__(reason)
        self.nodes, self.reason = nodes, reason
