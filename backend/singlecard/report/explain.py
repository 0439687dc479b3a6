"""What will a card do with a model? Its engines as their plans describe them, without a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType

from singlecard.engine.build import Engine
from singlecard.engine.cards import Card, cards_of
from singlecard.engine.roofline import roofline
from singlecard.lowering.guards import Guard
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.placement import Placement
from singlecard.report.guards import guard_dicts, guard_rows
from singlecard.report.html import plan_html
from singlecard.report.plan_rows import FallbackRow
from singlecard.report.quantized import placement_dict, placement_grid
from singlecard.report.render import fallback_table, plan_table, table_of
from singlecard.report.tables import (
    SHOWN_DIGITS,
    engines_text,
    facts_table,
    fallback_rows,
    lowered_text,
    size_rows,
    text_of,
)
from singlecard.report.verify import compile_model


@dataclass(frozen=True)
class Explanation:
    """What becomes of a model. Prints as a table; `html` makes a page of it.

    Attributes:
        name: what the model is called.
        options: what it was compiled with.
        coverage: share of the model's ops that engines compute, 0 to 1.
        ops: number of ops that were captured.
        fallback: the ops left to PyTorch, as ``(op, reason, times, line)``.
        engines: each with its ``digest``, the file ``plan``, and ``report``: kernels, traffic and
            its floor, scratch, size.
        timings: seconds by stage.
        placements: for each graph that was to be quantized, what became of each op, and why.
        guards: the attentions that are guarded against rows that a mask may hide, and the cost.
    """

    name: str
    options: Options
    coverage: float
    ops: int
    fallback: tuple[FallbackRow, ...]
    engines: tuple[Engine, ...]
    timings: dict[str, float] = field(repr=False)
    placements: tuple[Placement, ...] = ()
    guards: tuple[Guard, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Cards that the engines are for; empty means portable over Ampere and later."""
        return self.options.targets or ()

    @property
    def cards(self) -> tuple[Card, ...]:
        """Cards of the targets, that times are bounded on."""
        return cards_of(self.targets)

    def table(self, top: int = 10) -> RenderableType:
        """Return all of it as tables, with the ``top`` kernels of each engine."""
        rows = [
            ("precision", self.options.precision, ""),
            ("targets", _targets_text(self.targets), ""),
            ("ops lowered", *lowered_text(self.coverage, self.ops)),
            ("engines", *engines_text(len(self.engines), sum(e.built for e in self.engines))),
            *size_rows([engine.report for engine in self.engines]),
            *guard_rows(self.guards),
        ]
        parts: list[RenderableType] = [facts_table(self.name, rows)]
        if self.fallback:
            parts.append(fallback_table(self.fallback))
        if self.placements:
            parts += ["", table_of(placement_grid(self.placements))]
        for title, engine in zip(self._titles(), self.engines, strict=True):
            parts += [
                "",
                plan_table(engine.report, title=title, cards=self.cards, top=top, tf32=self._tf32),
            ]
        return Group(*parts)

    def html(self) -> str:
        """Return a page that needs no network and no script."""
        share, left = lowered_text(self.coverage, self.ops)
        facts = [
            self.options.precision,
            _targets_text(self.targets),
            f"{share} ops lowered{f', {left}' if left else ''}",
        ]
        return plan_html(
            [
                (title, engine.report)
                for title, engine in zip(self._titles(), self.engines, strict=True)
            ],
            title=f"{self.name}: {', '.join(facts)}",
            fallback=self.fallback,
            grids=[placement_grid(self.placements)] if self.placements else [],
            cards=self.cards,
            tf32=self._tf32,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, kernel by kernel. Times are in seconds."""
        return {
            "model": self.name,
            "precision": self.options.precision,
            "targets": list(self.targets),
            "coverage": self.coverage,
            "ops": self.ops,
            "fallback": [row._asdict() for row in self.fallback],
            "engines": [self._engine_dict(engine) for engine in self.engines],
            "quantization": [placement_dict(item) for item in self.placements],
            "guards": guard_dicts(self.guards),
            "timings": self.timings,
        }

    def __str__(self) -> str:
        return text_of(self.table())

    @property
    def _tf32(self) -> bool:
        return self.options.precision == "tf32"

    def _titles(self) -> list[str]:
        count = len(self.engines)
        return [
            f"Engine {place} of {count}: {engine.digest[:SHOWN_DIGITS]}"
            for place, engine in enumerate(self.engines, 1)
        ]

    def _engine_dict(self, engine: Engine) -> dict[str, Any]:
        report = engine.report
        needs = report.resident_bytes
        bounds = [(card, roofline(report, card, self._tf32)) for card in self.cards]
        return {
            "digest": engine.digest,
            "plan": str(engine.plan),
            "built": engine.built,
            "seconds": engine.seconds,
            "kernels": report.kernel_count,
            "kernels_by_kind": report.kernels_by_kind,
            "arithmetic_by_type": report.arithmetic_by_type,
            "bytes_moved": report.bytes_moved,
            "flops": report.flops,
            "roofline": [
                {
                    "card": card.name,
                    "target": card.target,
                    "fits": None if needs is None else needs <= card.memory_bytes,
                    "at_least_seconds": bound and bound.seconds,
                }
                for card, bound in bounds
            ],
            "report": report.to_dict(),
        }


def _targets_text(targets: Sequence[str]) -> str:
    return ", ".join(targets) or "portable"


def explain(
    module: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    options: Mapping[str, Any] | Options | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Tell what the engines of a model do, and why some ops have none.

    The model is captured, lowered and really built for ``options["targets"]`` (portable where none
    are given). No GPU is needed.

    Args:
        module: a model, or any function of tensors.
        args: example arguments; they are copied, and not changed.
        kwargs: example keyword arguments.
        dynamic_shapes: axes that vary, as for `singlecard.verify`.
        options: see `singlecard.Options`.
        progress: called with the builder's phase, the steps done and the steps in all.

    Raises:
        OptionError: an option, an argument or a range is not valid, or the model is in training
            mode.
        SinglecardError: with ``strict=True``, whatever stands in the way of lowering everything.

    Example:
        >>> import torch, singlecard
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> found = singlecard.explain(model, (torch.ones(2, 8),), options={"targets": "sm89"})
        >>> found.engines[0].report.kernel_count
        1
    """
    chosen = Options.parse(options)
    compiled = compile_model(module, args, kwargs, dynamic_shapes, chosen, "eager", progress)
    name = getattr(module, "__name__", type(module).__name__)
    return Explanation(
        name=name,
        options=chosen,
        coverage=compiled.coverage,
        ops=compiled.ops,
        fallback=tuple(
            fallback_rows((item.op, item.reason, item.line) for item in compiled.fallback)
        ),
        engines=compiled.engines,
        timings=compiled.timings,
        placements=compiled.placements,
        guards=compiled.guards,
    )
