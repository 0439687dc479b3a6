"""What a Program's ops compute in under the options of a compilation: types, and rounding."""

from __future__ import annotations

import copy
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import sympy
import torch
from torch import fx

from singlecard.capture.opaque import Opaque
from singlecard.capture.program import Program
from singlecard.capture.spans import Triple
from singlecard.collection import free_unused
from singlecard.engine.build import key_digest, key_parts, trial_report
from singlecard.engine.cache import Cache
from singlecard.engine.cards import cards_of
from singlecard.engine.cost import LAUNCH
from singlecard.engine.memory import recall, remember
from singlecard.engine.plan_report import PlanReport
from singlecard.errors import BuildError, LoweringError
from singlecard.faults import reason_of
from singlecard.lowering.call import op_name
from singlecard.lowering.lower import Lowered, lower
from singlecard.lowering.table import refusal
from singlecard.network.building import BuildSettings
from singlecard.observe.topics import topic
from singlecard.options import QUANTIZED, Options, types_of
from singlecard.partition import divide
from singlecard.partition.exclusion import exclusion
from singlecard.passes import simplify
from singlecard.passes.checking import Pass, run_passes
from singlecard.passes.rule import ROUNDED
from singlecard.placement import (
    ASSIGNABLE,
    Decision,
    Placement,
    decide,
    place,
    placement_from_dict,
    placement_to_dict,
)
from singlecard.precision.casts import lower_precision
from singlecard.precision.demote import demote_float64
from singlecard.precision.places import places_of
from singlecard.precision.points import is_named, names_of, points_of
from singlecard.precision.quantize import ROUNDING, quantize
from singlecard.targets import check_types


def low_type(precision: str) -> torch.dtype | None:
    """Return what FP32 parts compute with; None where they stay in FP32."""
    if precision in QUANTIZED or precision == "fp16":
        return torch.float16
    return torch.bfloat16 if precision == "bf16" else None


#: What a trial is made for.
Read = TypeVar("Read")

#: Plans that are built to place INT8 or FP8, at most.
TRIALS = 48


class Choosing:
    """The part of a compilation that decides on types, for one set of options.

    Attributes:
        options: what the caller asked for.
        timings: seconds by stage.
    """

    options: Options
    timings: dict[str, float]

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
            options.targets or (),
            options.precision == "tf32",
            options.workspace_bytes,
            options.sparse_weights,
            weight_streaming=options.memory_budget is not None,
        )

    @functools.cached_property
    def cache(self) -> Cache:
        """The engines on this machine.

        Raises:
            OptionError: ``SINGLECARD_CACHE_LIMIT`` is no size.
        """
        options = self.options
        return Cache(options.cache_dir, options.cache_limit, fallback=not options.strict)

    @functools.cached_property
    def _excluded(self) -> Callable[[fx.Node], str | None]:
        return exclusion(self.options.exclude_ops, self.options.exclude_modules)

    def _reason_of(self, node: fx.Node) -> str | None:
        try:
            return self._excluded(node) or refusal(node)
        except Exception as error:  # a fault of ours costs this op
            return reason_of(error, f"reading the limits of {op_name(node)}")

    def _name(self, program: Program) -> None:
        """Bring a Program to the form in which ops have names for calibration."""
        if low_type(self.options.precision) is not None:
            check_types(types_of(self.options.precision), self.options.targets or ())
        with self.timed("passes"):
            if self.options.demote_float64:
                demote_float64(program)
            simplify(program)

    def _lower_precision(self, program: Program, assignment: Mapping[str, str]) -> None:
        """Quantize what is assigned, and let the rest compute in FP16 or BF16, where asked for."""
        low = low_type(self.options.precision)
        if low is None:
            return
        with self.timed("passes"):
            stays = {node for node in program.calls() if _stays(node, self._reason_of)}
            stays |= self._kept_fp32(program)
            if assignment:
                points = points_of(program)
                quantize(program, points, assignment, self.options.calibration)

            def lowered(program: Program) -> None:
                lower_precision(program, low, stays.__contains__)

            step = Pass("lower_precision", lowered, exactness=ROUNDED, gives_types=True)
            run_passes(program, [step])
            simplify(program)

    def _kept_fp32(self, program: Program) -> set[fx.Node]:
        table = self.options.calibration
        wanted = (*self.options.keep_fp32, *(table.keep_fp32 if table else ()))
        if not wanted:
            return set()
        return {node for node, name in names_of(program).items() if is_named(name, wanted)}

    def _place(self, program: Program, spans: Mapping[sympy.Symbol, Triple]) -> Placement:
        """Choose what is quantized: as asked, as assigned, or by what the plans say."""
        options, points = self.options, points_of(program)
        kept = self._kept_fp32(program) | places_of(program).kept
        decisions = decide(points, options.precision, options.calibration, self._reason_of, kept)
        candidates = {item.name: item.taken for item in decisions if item.taken in ASSIGNABLE}
        if options.precision not in ROUNDING or not candidates:
            return Placement(tuple(decisions))

        def build(assignment: Mapping[str, str]) -> list[PlanReport] | None:
            def report(lowered: Lowered) -> PlanReport:
                return trial_report(lowered, self.settings, cache)

            return self._tried(program, assignment, spans, report)

        with self.timed("placement"):
            cache = self.cache
            digest = self._trials_digest(program, candidates, spans)
            placed = placement_from_dict(recall(cache, digest)) if digest else None
            if placed is None and options.build == "never":
                words = "build='never', and no plans were compared before"
                placed = Placement(
                    tuple(Decision(name, kind, "fp16", words) for name, kind in candidates.items())
                )
            elif placed is None:
                placed = place(points, candidates, build, cards_of(options.targets or ()), TRIALS)
                if digest:
                    remember(cache, digest, placement_to_dict(placed))
        found = {item.name: item for item in placed.decisions}
        return dataclasses.replace(
            placed, decisions=tuple(found.get(item.name, item) for item in decisions)
        )

    def _trials_digest(
        self,
        program: Program,
        candidates: Mapping[str, str],
        spans: Mapping[sympy.Symbol, Triple],
    ) -> str | None:
        """Return the digest of all that a placement follows from; None where nothing lowers.

        The networks with nothing and with everything quantized hold weights, scales and sizes.
        """
        parts: list[dict[str, str]] = []
        for assignment in ({}, candidates):
            found = self._tried(
                program, assignment, spans, lambda lowered: key_parts(lowered, self.settings)
            )
            if found is None:
                return None
            parts += found
        rules = {
            "candidates": repr(sorted(candidates.items())),
            "cards": repr(cards_of(self.options.targets or ())),
            "trials": f"{TRIALS} {LAUNCH}",
        }
        return key_digest({**rules, "networks": repr([sorted(part.items()) for part in parts])})

    def _tried(
        self,
        program: Program,
        assignment: Mapping[str, str],
        spans: Mapping[sympy.Symbol, Triple],
        read: Callable[[Lowered], Read],
    ) -> list[Read] | None:
        """Return what is read of the networks of an assignment; None where one is refused.

        Trials come by dozens, each with the weights in its own types: all that one makes is free
        again behind it.
        """
        try:
            return self._read(program.copy(), assignment, spans, read)
        finally:
            free_unused()  # when nothing leads to it any more

    def _read(
        self,
        trial: Program,
        assignment: Mapping[str, str],
        spans: Mapping[sympy.Symbol, Triple],
        read: Callable[[Lowered], Read],
    ) -> list[Read] | None:
        if trial.spill is not None:
            trial.spill = trial.spill.fresh()
        try:
            return [read(lowered) for lowered in self._networks(trial, assignment, spans)]
        except (BuildError, LoweringError) as error:
            topic("placement").debug("a trial does not build: %s", str(error))
            return None
        finally:
            trial.discard()

    def _networks(
        self,
        program: Program,
        assignment: Mapping[str, str],
        spans: Mapping[sympy.Symbol, Triple],
    ) -> Iterator[Lowered]:
        """Lower a Program with an assignment, for its usual sizes alone."""
        apart = copy.copy(self)
        apart.timings = {}
        apart._lower_precision(program, assignment)
        partition = divide(program, self._reason_of, self.options.min_block_size)
        for segment in partition.segments:
            if segment.lowered:
                yield lower(program, segment, spans, usual=True)


def _stays(node: fx.Node, reason_of: Callable[[fx.Node], str | None]) -> bool:
    is_op = isinstance(node.target, (torch._ops.OperatorBase, Opaque))
    return is_op and reason_of(node) is not None
