"""What the engines of a model take on a card: their plans are built, and only read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program
from singlecard.capture.spans import Triple
from singlecard.engine.build import Engine, key_digest, key_parts, trial_report
from singlecard.engine.memory import recall, remember
from singlecard.engine.plan_traffic import largest, total
from singlecard.lowering.lower import Lowered
from singlecard.partition import Segment
from singlecard.report.doors import Entrance
from singlecard.report.measure import run_compiled
from singlecard.runtime.executable import Executable
from singlecard.session import Session

#: An input with fewer axes that a model writes to is a counter or a statistic, and no cache.
_CACHE_AXES = 3


@dataclass(frozen=True)
class PlanSizes:
    """The sizes of one plan, as its builder reports them; None for what it does not tell."""

    weights_bytes: int | None
    scratch_bytes: int | None
    engine_bytes: int
    kernels: int | None


@dataclass(frozen=True)
class Footprint:
    """What a model's engines take, in bytes; None for what the builder of one does not tell.

    Attributes:
        plans: the sizes of each engine's plan.
        tensor_bytes: inputs and outputs of the engines, each once, caches left out.
        cache_shapes: shapes of the inputs with three axes or more that the model writes to.
        cache_bytes: of these.
        left_ops: number of ops that stay in PyTorch.
        built: number of plans built just now; the sizes of others were known.
    """

    plans: tuple[PlanSizes, ...]
    tensor_bytes: int
    cache_shapes: tuple[tuple[int, ...], ...]
    cache_bytes: int
    left_ops: int
    built: int

    @property
    def weights_bytes(self) -> int | None:
        return total(plan.weights_bytes for plan in self.plans)

    @property
    def scratch_bytes(self) -> int | None:
        """Scratch of the engine that takes most: engines on one stream take turns with it."""
        return largest(plan.scratch_bytes for plan in self.plans)

    @property
    def engine_bytes(self) -> int:
        return sum(plan.engine_bytes for plan in self.plans)

    @property
    def kernels(self) -> int | None:
        return total(plan.kernels for plan in self.plans)


def footprint_of(entrance: Entrance) -> Footprint:
    """Capture and lower a model with its arguments, build its plans, and keep their sizes.

    Sizes are kept in the cache folder, plans are not. The model runs once in PyTorch, and may
    change its arguments.
    """
    session = _SizeSession(dataclasses.replace(entrance.options, build="now"), "eager", True)
    with torch.random.fork_rng():
        run_compiled(session, entrance.call, entrance.axes)
    return Footprint(
        tuple(session.kept),
        sum(map(_bytes_of, session.tensors)),
        tuple(_shape_of(value) for value in session.caches),
        sum(map(_bytes_of, session.caches)),
        sum(len(graph.fallback) for graph in session.graphs),
        session.built,
    )


@dataclass
class _SizeSession(Session):
    """A session that reads plans where another keeps engines."""

    sizes: dict[Segment, PlanSizes] = field(default_factory=dict)
    kept: list[PlanSizes] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list)
    caches: list[torch.Tensor] = field(default_factory=list)
    built: int = 0

    def compile(
        self, program: Program, spans: Mapping[sympy.Symbol, Triple] | None = None
    ) -> Executable:
        executable = super().compile(program, spans)
        partition = self.graphs[-1].partition
        segments = [] if partition is None else [s for s in partition.segments if s in self.sizes]
        caches = _written_inputs(program)
        self.kept += [self.sizes[segment] for segment in segments]
        self.caches += [node.meta["val"] for node in caches]
        self.tensors += [
            node.meta["val"]
            for node in dict.fromkeys(_nodes_around(segments))
            if node not in caches and node.target is not ops.update_cache
        ]
        return executable

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine | None:  # type: ignore[override]
        parts = key_parts(lowered, self.settings)
        digest = key_digest({**parts, "kept": "sizes"})
        sizes = _sizes_from(recall(self.cache, digest))
        if sizes is None:
            self._check_remembered(parts, segment)
            report = trial_report(lowered, self.settings, self.cache)
            sizes = PlanSizes(
                report.weights_bytes,
                report.scratch_bytes,
                report.engine_bytes,
                report.kernel_count,
            )
            self.built += 1
            remember(self.cache, digest, dataclasses.asdict(sizes))
        self.sizes[segment] = sizes
        return None


def _sizes_from(value: Any) -> PlanSizes | None:
    try:
        return PlanSizes(**value)
    except TypeError:
        return None


def _written_inputs(program: Program) -> list[fx.Node]:
    """Return the inputs that a model writes to and that are large enough for a cache."""
    inputs = dict(zip(program.positions, program.placeholders, strict=True))
    written = [inputs[place] for place in program.mutations if place in inputs]
    return [node for node in written if node.meta["val"].ndim >= _CACHE_AXES]


def _nodes_around(segments: Iterable[Segment]) -> Iterable[fx.Node]:
    for segment in segments:
        for node in (*segment.inputs, *segment.outputs):
            if isinstance(node.meta["val"], torch.Tensor):
                yield node


def _shape_of(value: torch.Tensor) -> tuple[int, ...]:
    return tuple(
        int(size.node.hint) if isinstance(size, torch.SymInt) else size for size in value.shape
    )


def _bytes_of(value: torch.Tensor) -> int:
    count = value.element_size()
    for size in _shape_of(value):
        count *= size
    return count
