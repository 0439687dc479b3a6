"""A machine with a card for artifacts: engines are evaluated instead, as they were exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from singlecard.artifact import captured, loading
from singlecard.artifact.exporting import ExportReport, export
from singlecard.artifact.loading import Loaded, load
from singlecard.artifact.plans import StoredPlan
from singlecard.engine.build import Engine
from singlecard.lowering.lower import Lowered
from singlecard.partition import Segment
from singlecard.runtime.binding import Binding
from singlecard.runtime.runners import reference_runner
from singlecard.session import Session
from tests.backend.harness import equal

NETWORKS: dict[str, Lowered] = {}


class Evaluated:
    """Stands in for an engine on a card: the arithmetic of the network that its plan is of."""

    #: The newest one.
    made: ClassVar[list[Evaluated]] = []

    def __init__(self, plan: StoredPlan, binding: Binding, **settings: Any) -> None:
        self.settings = settings["settings"]
        self.made[:] = [self]
        self.plan, self.binding = plan, binding
        self.run: Callable[[Sequence[Any]], Sequence[Any]] | None = None

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        if self.run is None:
            with self.plan.mapped():  # what TensorRT would be given
                self.run = reference_runner(NETWORKS[self.plan.member], self.binding)
        return self.run(values)


class Recording(Session):
    """Keeps the network of each plan."""

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine:
        engine = super()._engine(lowered, segment)
        NETWORKS[f"engines/{engine.digest}.plan"] = lowered
        return engine


class Machine:
    """Where artifacts are exported and loaded."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.path = folder, folder / "model.singlecard"
        monkeypatch.setattr(captured, "Session", Recording)
        monkeypatch.setattr(loading, "EngineRunner", Evaluated)
        monkeypatch.setattr(loading, "card_refusal", lambda tensors: None)
        monkeypatch.setattr(loading, "target_of", lambda device: "sm89")

    def export(self, model: Any, *args: Any, **given: Any) -> ExportReport:
        """Export a model; options of the backend are under ``options``."""
        options = {"targets": "sm89", "min_block_size": 1, **given.pop("options", {})}
        kwargs = given.pop("kwargs", None)
        return export(model, args, kwargs, self.path, options=options, **given)

    def load(self, **given: Any) -> Loaded:
        return load(self.path, device="cpu", **given)

    def trip(self, model: Any, *args: Any, **given: Any) -> Loaded:
        """Export and load a model."""
        self.export(model, *args, **given)
        return self.load()


def same(got: Any, want: Any, tolerance: float = 1e-4) -> None:
    """Compare nests, as those of torch.compile are compared."""
    equal(got, want, tolerance)


def memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
