"""One compilation from end to end: a Program becomes segments, networks, engines, a callable."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy
from torch import fx

from singlecard.blame import BUILDS, Budget, alike, first_refused, named_nodes, refusal_digest
from singlecard.capture.program import Program, source_line
from singlecard.capture.spans import Triple
from singlecard.capture.spill import Spill
from singlecard.checking import counted
from singlecard.choosing import Choosing
from singlecard.collection import free_unused
from singlecard.engine.build import Engine, find_engine, get_engine, key_parts, trial_report
from singlecard.engine.cache import StoreError, default_folder
from singlecard.engine.memory import recall, remember
from singlecard.engine.remote import RemoteTier
from singlecard.errors import BuildError, LoweringError, RuntimeFailure
from singlecard.faults import BAD_INPUT, reason_of
from singlecard.lowering.call import op_name
from singlecard.lowering.cards import target_refusal
from singlecard.lowering.guards import Guard, guards_of
from singlecard.lowering.lower import Lowered, NodeRefused, lower
from singlecard.network.building import Progress, RangeRefused
from singlecard.observe.topics import topic
from singlecard.options import QUANTIZED, Options
from singlecard.partition import Fallback, Partition, Segment, beginning_of, divide, is_counted
from singlecard.placement import Placement
from singlecard.precision.points import points_of
from singlecard.recipe import Recipe
from singlecard.runtime.binding import Binding, binding_of
from singlecard.runtime.engine import EngineRunner, settings_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.offload import Offload
from singlecard.runtime.pieces import Cut, Pieces
from singlecard.runtime.ranged import in_range
from singlecard.runtime.runners import Runner, pytorch_runner, reference_runner
from singlecard.runtime.torch_tensorrt import TorchTensorRTRunner, describe
from singlecard.unmatched import tell_unmatched, unmatched_names

#: Shares of a range that TensorRT refused, around the sizes at hand, that are tried instead.
_NARROWER = (0.5, 0.0)


@dataclass
class Graph:
    """What became of one captured graph."""

    partition: Partition | None = None
    engines: list[Engine] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    fallback: list[Fallback] = field(default_factory=list)
    placement: Placement | None = None
    guards: list[Guard] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    ops: int = 0
    lowered_ops: int = 0
    recipe: Recipe | None = None
    unmatched: dict[str, str] = field(default_factory=dict)

    @classmethod
    def left_out(cls, module: fx.GraphModule, reason: str) -> Graph:
        """Return the entry of a graph that stays in PyTorch as a whole."""
        calls = [node for node in module.graph.nodes if node.op.startswith("call_")]
        left = [Fallback(op_name(node), reason, source_line(node)) for node in calls]
        return cls(fallback=left, ops=len(calls))

    def leave(self, ops: Sequence[Fallback]) -> None:
        """Note that PyTorch answered for ops that were lowered: a report must not count them."""
        self.fallback += ops
        self.lowered_ops -= len(ops)


@dataclass
class Session(Choosing):
    """Options, and what was compiled under them.

    Attributes:
        options: what the caller asked for.
        execution: how answers are made: ``engine``, ``reference`` or ``eager``.
        build: whether engines are built.
        progress: told of the builder's phases.
        graphs: one entry for each graph that was captured.
        timings: seconds by stage: capture, passes, partition, lowering, digest, build.
        reports: whether ``graphs`` is kept for a report. What only runs must not gather there what
            became of each set of weights.
    """

    options: Options
    execution: str = "reference"
    build: bool = True
    progress: Progress | None = None
    graphs: list[Graph] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    reports: bool = True

    @functools.cached_property
    def remote(self) -> RemoteTier | None:
        """The engines that machines share.

        Raises:
            OptionError: its address or its key cannot be used.
        """
        return RemoteTier.of(self.options)

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
        try:
            return self._compile(program, spans or {}, graph)
        except BaseException:
            self.graphs[:] = [item for item in self.graphs if item is not graph]
            raise

    def _compile(
        self, program: Program, spans: Mapping[sympy.Symbol, Triple], graph: Graph
    ) -> Executable:
        frozen = Frozen.of(program)
        program.spill = self._new_spill()
        if self.options.build == "background":  # the model may be trained on meanwhile
            program.copy_constants()
        self._name(program)
        graph.unmatched = unmatched_names(program, self.options, program.scope)
        if program.scope.whole:
            tell_unmatched(graph.unmatched.values(), self.options)
        if self.options.calibration is not None:
            points = points_of(program)
            self.options.calibration.check({point.name: point.signature() for point in points})
        if self.options.precision in QUANTIZED:
            graph.placement = self._place(program, spans)
        work = self._finish(program, graph.placement, spans, graph, frozen)
        if any(engine.built for engine in graph.engines):
            free_unused()
        graph.partition = work.partition
        graph.ops, graph.lowered_ops = work.partition.ops, work.partition.lowered_ops
        graph.fallback = list(work.partition.fallback)
        engines = [segment for segment in work.partition.segments if segment.lowered]
        graph.guards = guards_of(node for segment in engines for node in segment.nodes)
        graph.trace = program.trace
        self._tell(graph.fallback)
        executable = Executable.of(program, work.steps, frozen)
        program.settle()  # parts that run in PyTorch may hold it, and the model may go
        if self.execution == "engine" and program.again is not None:
            program.let_go()  # engines have the weights, and the model
        wiring, passed = executable.wiring, program.passed
        if passed is not None and len(graph.engines) == len(work.steps) == 1:
            if not wiring.constants and not graph.unmatched:  # what is said is said next time too
                (engine,), (binding,) = graph.engines, graph.bindings
                graph.recipe = Recipe(wiring, engine.digest, binding, passed)
        return executable

    def _finish(
        self,
        program: Program,
        placement: Placement | None,
        spans: Mapping[sympy.Symbol, Triple],
        graph: Graph,
        frozen: Frozen,
    ) -> _Work:
        """Lower the precision of a Program, divide it, and make what runs each segment."""
        refused: dict[str, str] = {}
        reason = functools.partial(self._final_reason, refused)
        assignment = {} if placement is None else placement.assignment
        self._lower_precision(program, assignment)
        budget, known = Budget(), dict[Segment, _Prepared]()
        while True:
            with self.timed("partition"):
                partition = divide(program, reason, self.options.min_block_size)
            self._insist(partition.fallback)
            try:
                for segment in partition.segments:
                    if segment not in known:
                        known[segment] = self._step(program, segment, graph, spans, budget)
                break
            except _Refused as error:
                refused.update({node.name: error.reason for node in error.nodes})
        prepared = [known[segment] for segment in partition.segments]
        graph.engines = [item.engine for item in prepared if item.engine is not None]
        graph.bindings = [item.binding for item in prepared if item.binding is not None]
        cut: Cut = lambda: (program, partition.segments)  # noqa: E731
        if program.again is not None and self.execution == "engine":
            cut = functools.partial(self._cut_again, program.again, assignment, refused)
        about = _About(
            # By their reports: who only builds holds no plan, and others may remove it by now.
            sum(engine.report.engine_bytes for engine in graph.engines),
            Pieces(cut, frozen),
            Offload(frozen, self.options.offload_weights),
        )
        return _Work(partition, [item.make(place, about) for place, item in enumerate(prepared)])

    def _new_spill(self) -> Spill:
        return Spill(self.options.cache_dir or default_folder())

    def _cut_again(
        self,
        capture: Callable[[], Program],
        assignment: Mapping[str, str],
        refused: Mapping[str, str],
    ) -> tuple[Program, Sequence[Segment]]:
        """Capture a Program once more, and cut it as it was cut."""
        program = capture()
        program.spill = self._new_spill()
        self._name(program)
        self._lower_precision(program, assignment)
        program.follow_weights()
        reason = functools.partial(self._final_reason, refused)
        return program, divide(program, reason, self.options.min_block_size).segments

    def _final_reason(self, refused: Mapping[str, str], node: fx.Node) -> str | None:
        return (
            refused.get(node.name)
            or self._reason_of(node)
            or target_refusal(node, self.options.targets or ())
        )

    def _step(
        self,
        program: Program,
        segment: Segment,
        graph: Graph,
        spans: Mapping[sympy.Symbol, Triple],
        budget: Budget,
    ) -> _Prepared:
        """Prepare a segment; its runner is made when all segments are prepared."""
        if not segment.lowered:
            run = pytorch_runner(program, segment, self.options.fallback)
            return _Prepared(lambda place, about: run)
        try:
            with self.timed("lowering"):
                lowered = lower(program, segment, spans)
        except NodeRefused as error:
            raise _Refused(alike(error.node, segment.nodes), str(error)) from error
        except Exception as error:
            raise _Refused(segment.nodes, reason_of(error, "lowering")) from error
        engine = None
        if self.build:
            try:
                engine = self._engine(lowered, segment)
            except (_Refused, *BAD_INPUT):
                raise
            except RangeRefused as error:
                narrow = self._built_at_hand(program, segment, spans, error)
                if narrow is None:
                    raise self._isolate(program, segment, lowered, error, spans, budget) from error
                lowered, engine = narrow
            except Exception as error:
                raise self._isolate(program, segment, lowered, error, spans, budget) from error
        binding = binding_of(lowered, segment)
        graph.bindings.append(binding)
        if self.execution == "engine":
            assert engine is not None
            make = self._engine_runner(engine, binding, segment)
        else:
            reference = reference_runner(lowered, binding)
            make = lambda about: reference  # noqa: E731

        ops = [(op_name(node), source_line(node)) for node in segment.nodes if is_counted(node)]

        def keep(reason: str) -> None:
            graph.leave([Fallback(op, reason, line) for op, line in ops])

        def made(place: int, about: _About) -> Runner:
            instead = None if self.options.strict else about.pieces.runner(place, segment)
            return in_range(make(about), binding, instead, keep)

        # What runs the engine holds it: who only builds lets go.
        kept = None if engine is None else dataclasses.replace(engine, entry=None)
        return _Prepared(made, kept, binding)

    def _built_at_hand(
        self,
        program: Program,
        segment: Segment,
        spans: Mapping[sympy.Symbol, Triple],
        error: RangeRefused,
    ) -> tuple[Lowered, Engine] | None:
        """Build a segment for sizes around those at hand; None where these do not build either."""
        for around in _NARROWER:
            with contextlib.suppress(_Refused, LoweringError, BuildError):
                with self.timed("lowering"):
                    lowered = lower(program, segment, spans, around=around)
                engine = self._engine(lowered, segment)
                topic("partition").warning(
                    "%s: this part is built for sizes around those at hand alone", error
                )
                return lowered, engine
        return None

    def _engine_runner(
        self, engine: Engine, binding: Binding, segment: Segment
    ) -> Callable[[_About], Runner]:
        plan, held = engine.plan, engine.entry
        if self.options.runtime == "tensorrt":
            size = plan.stat().st_size
            return lambda about: EngineRunner(
                plan,
                binding,
                held,
                settings=settings_of(self.options, size, about.plan_bytes),
                before_load=about.offload,
            )
        try:
            described = describe(segment, binding)
            runner = TorchTensorRTRunner(plan, binding, held, described=described)
        except RuntimeFailure as error:
            raise _Refused(segment.nodes, str(error)) from error
        return lambda about: runner

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine:
        with self.timed("digest"):
            parts = key_parts(lowered, self.settings)
        with self.timed("build"):
            self._check_remembered(parts, segment)
            cache, remote = self.cache, self.remote
            if self.options.build == "never":
                engine = find_engine(parts, cache, remote)
                if engine is None:
                    words = "build='never', and its engine is not cached"
                    raise _Refused(segment.nodes, words)
                return engine
            try:
                return get_engine(lowered, self.settings, cache, self.progress, parts, remote)
            except StoreError as error:
                raise _Refused(segment.nodes, str(error)) from error

    def _check_remembered(self, parts: Mapping[str, str], segment: Segment) -> None:
        """Refuse what a build of the same network was refused for, in this process or another.

        Raises:
            _Refused: there was such a build.
        """
        held = recall(self.cache, refusal_digest(parts))
        if held is not None:
            nodes = [segment.nodes[place] for place in held["nodes"]]
            raise _Refused(nodes, held["reason"])

    def _isolate(
        self,
        program: Program,
        segment: Segment,
        lowered: Lowered,
        error: Exception,
        spans: Mapping[sympy.Symbol, Triple],
        budget: Budget,
    ) -> _Refused:
        """Find the op for which a network is refused, by TensorRT's words or by trial builds."""
        reason = reason_of(error, "building")
        if self.options.build == "never" or not budget.take():
            return _Refused(segment.nodes, reason)

        def builds(count: int) -> bool:
            try:
                tried = lower(program, beginning_of(program, segment, count), spans)
                key_parts(tried, self.settings)
                trial_report(tried, self.settings, self.cache)
            except Exception as refusal:
                topic("build").debug("a trial does not build: %s", refusal)
                return False
            return True

        with self.timed("build"):
            named = named_nodes(lowered, reason)
            of_machine = isinstance(error, MemoryError) or "memory" in reason.lower()
            if len(named) != 1 and of_machine:  # no op's fault: a smaller network would build
                return _Refused(segment.nodes, reason)
            node = named[0] if len(named) == 1 else first_refused(segment, builds, budget)
        if node is None:
            return _Refused(
                segment.nodes, f"{reason} (which op it is was not found in {BUILDS} builds)"
            )
        nodes = alike(node, segment.nodes)
        if not isinstance(error, BuildError) or of_machine:  # it may build the next time
            return _Refused(nodes, reason)
        with contextlib.suppress(Exception):  # else the next process finds it out again
            parts = key_parts(lowered, self.settings)
            places = [segment.nodes.index(item) for item in nodes]
            remember(self.cache, refusal_digest(parts), {"nodes": places, "reason": reason})
        return _Refused(nodes, reason)

    def _insist(self, fallback: Sequence[Fallback]) -> None:
        """Raise where the caller wants everything lowered and something is not."""
        if fallback and self.options.strict:
            first = fallback[0]
            more = f" ({counted(len(fallback) - 1, 'more op')})" if len(fallback) > 1 else ""
            raise LoweringError(f"{first.reason}{more}. {first.line}".strip())

    def _tell(self, fallback: Sequence[Fallback]) -> None:
        """Log once what stays in PyTorch."""
        for reason in dict.fromkeys(item.reason for item in fallback):
            topic("partition").warning("%s: this part stays in PyTorch", reason)


@dataclass(frozen=True, eq=False)
class _Work:
    """A Program divided, and what runs each segment."""

    partition: Partition
    runners: list[Runner]

    @property
    def steps(self) -> list[tuple[Segment, Runner]]:
        return list(zip(self.partition.segments, self.runners, strict=True))


@dataclass(frozen=True, eq=False)
class _About:
    """What runners know of all segments of their graph.

    Attributes:
        plan_bytes: of all its plans.
        pieces: its segments as PyTorch runs them.
        offload: moves its weights off the card.
    """

    plan_bytes: int
    pieces: Pieces
    offload: Offload


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A segment that is ready: what makes its runner, for its place among all, and its engine."""

    make: Callable[[int, _About], Runner]
    engine: Engine | None = None
    binding: Binding | None = None


class _Refused(Exception):
    """Ops that must stay in PyTorch after all, found while lowering or building."""

    def __init__(self, nodes: Sequence[fx.Node], reason: str) -> None:
        super().__init__(reason)
        self.nodes, self.reason = nodes, reason
