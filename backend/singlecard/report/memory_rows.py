"""What a model takes on a card, row by row: in each precision, whole or streamed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from singlecard.engine.plan_traffic import total
from singlecard.report.footprint import Footprint

#: An assumption: bytes a second from host memory to the card, PCIe 4.0 with 8 lanes or 3.0 with 16
#: by specification. A card on 16 lanes of PCIe 4.0 has twice that; one on 5.0, four times.
LINK = 15.75e9


@dataclass(frozen=True)
class PlanRow:
    """One way to run a model on a card. Sizes are in bytes, None where TensorRT did not tell.

    Attributes:
        precision: see `singlecard.Options`.
        batch, length: of the inputs; None where the model has none.
        share: of the weights that stay on the card; the rest is streamed at each call.
        footprint: what the plans take; None where they could not be built.
        cache_bytes: what caches of keys and values take; None where the model has none.
        card_bytes, reserve_bytes: what the card has, and what is left to CUDA of it.
        problem: why there is no plan, or "".
        recommended: whether this is the row to take for its batch and length.
    """

    precision: str
    batch: int | None
    length: int | None
    share: float
    footprint: Footprint | None
    cache_bytes: int | None
    card_bytes: int
    reserve_bytes: int
    problem: str = ""
    recommended: bool = False

    @property
    def weights_bytes(self) -> int | None:
        """All weights of the engines, wherever they are kept."""
        return 0 if self.footprint is None else self.footprint.weights_bytes

    @property
    def scratch_bytes(self) -> int | None:
        return 0 if self.footprint is None else self.footprint.scratch_bytes

    @property
    def tensor_bytes(self) -> int:
        """Inputs and outputs of the engines."""
        return 0 if self.footprint is None else self.footprint.tensor_bytes

    @property
    def memory_budget(self) -> int | None:
        """What to give as option ``memory_budget``; None where nothing is streamed."""
        weights = self.weights_bytes
        return None if self.share == 1 or weights is None else int(self.share * weights)

    @property
    def streamed_bytes(self) -> int:
        """Weights that come from host memory at each call."""
        return 0 if self.memory_budget is None else (self.weights_bytes or 0) - self.memory_budget

    @property
    def stream_seconds(self) -> float:
        """What a call takes at least to stream its weights over `LINK`."""
        return self.streamed_bytes / LINK

    @property
    def least_bytes(self) -> int | None:
        """Scratch, inputs, outputs, caches and the reserve: what no streaming makes smaller."""
        kept = self.tensor_bytes + (self.cache_bytes or 0) + self.reserve_bytes
        return total((self.scratch_bytes, kept))

    @property
    def needs_bytes(self) -> int | None:
        """All of these, and the weights that stay on the card."""
        return total((self.weights_bytes, -self.streamed_bytes, self.least_bytes))

    @property
    def left_bytes(self) -> int | None:
        """What is left of the card; below zero, what is missing."""
        return total((self.card_bytes, None if self.needs_bytes is None else -self.needs_bytes))

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None where TensorRT did not tell what the plan takes."""
        if self.problem:
            return False
        return None if self.left_bytes is None else self.left_bytes >= 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        plan = self.footprint
        return {
            "precision": self.precision,
            "batch": self.batch,
            "length": self.length,
            "share": self.share,
            "memory_budget": self.memory_budget,
            "weights_bytes": None if plan is None else plan.weights_bytes,
            "scratch_bytes": None if plan is None else plan.scratch_bytes,
            "tensor_bytes": None if plan is None else plan.tensor_bytes,
            "cache_bytes": self.cache_bytes,
            "cache_shapes": [] if plan is None else [list(shape) for shape in plan.cache_shapes],
            "engine_bytes": None if plan is None else plan.engine_bytes,
            "engines": None if plan is None else len(plan.plans),
            "kernels": None if plan is None else plan.kernels,
            "left_ops": None if plan is None else plan.left_ops,
            "needs_bytes": None if plan is None else self.needs_bytes,
            "left_bytes": None if plan is None else self.left_bytes,
            "fits": self.fits,
            "recommended": self.recommended,
            "streamed_bytes": self.streamed_bytes,
            "stream_seconds": self.stream_seconds,
            "problem": self.problem,
        }


@dataclass(frozen=True)
class MemoryPlan:
    """What a model takes on a card, in each precision. Prints as a table.

    Attributes:
        name: what the model is called.
        card: how the card was given.
        card_bytes: its memory.
        reserve_bytes: what is left of it to CUDA and PyTorch, an assumption.
        cache: where the sizes of caches come from: ``"inputs"`` that the model writes to, the
            ``"config"`` of a decoder that was captured without one, or ``""``.
        rows: one for each precision, batch, length and share of the weights.
    """

    name: str
    card: str
    card_bytes: int
    reserve_bytes: int
    cache: str
    rows: tuple[PlanRow, ...]

    @property
    def fits(self) -> bool:
        """Whether any row is known to fit."""
        return any(row.fits for row in self.rows)

    @property
    def recommended(self) -> tuple[PlanRow, ...]:
        """The row to take for each batch and length for which one fits."""
        return tuple(row for row in self.rows if row.recommended)

    def table(self) -> RenderableType:
        from singlecard.report.memory_table import memory_table

        return memory_table(self)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "model": self.name,
            "card": self.card,
            "card_bytes": self.card_bytes,
            "reserve_bytes": self.reserve_bytes,
            "link_bytes_per_second": LINK,
            "cache": self.cache,
            "fits": self.fits,
            "rows": [row.to_dict() for row in self.rows],
        }

    def __str__(self) -> str:
        from singlecard.report.tables import text_of

        return text_of(self.table())
