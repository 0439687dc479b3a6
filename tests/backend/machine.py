"""Processes that share an engine cache, with a card in each: engines are evaluated instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

from singlecard import backend, recalled, session
from singlecard.engine.build import Engine
from singlecard.lowering.lower import Lowered
from singlecard.options import Options
from singlecard.partition import Segment
from singlecard.runtime.binding import Binding
from singlecard.runtime.runners import reference_runner
from singlecard.session import Session

NETWORKS: dict[Path, Lowered] = {}


class Evaluated:
    """Stands in for an engine on a card: the arithmetic of the network that its plan is of."""

    def __init__(self, plan: Path, binding: Binding, held: object, **settings: Any) -> None:
        self.held, self.settings = held, settings.get("settings")
        self.run = reference_runner(NETWORKS[plan], binding)

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return self.run(values)


class Recording(Session):
    """Keeps the network of each plan."""

    def _engine(self, lowered: Lowered, segment: Segment) -> Engine:
        engine = super()._engine(lowered, segment)
        NETWORKS[engine.plan] = lowered
        return engine


class Machine:
    """Processes that share an engine cache, one after the other, with a card in each."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.captures = folder, 0
        monkeypatch.setattr(session, "EngineRunner", Evaluated)
        monkeypatch.setattr(recalled, "EngineRunner", Evaluated)
        capture = backend.capture

        def counted(*args: Any) -> Any:
            self.captures += 1
            return capture(*args)

        monkeypatch.setattr(backend, "capture", counted)

    def start(
        self, model: Callable[..., Any], *, dynamic: bool | None = None, **options: Any
    ) -> Callable[..., Any]:
        """Compile a model as a new process would."""
        torch._dynamo.reset()
        chosen = Options.parse({"cache_dir": self.folder, "targets": "sm89", **options})

        def compiler(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
            held = Recording(chosen, "engine", True)
            return backend.compile_in(held, graph, examples, remembers=True)

        call: Callable[..., Any] = torch.compile(model, backend=compiler, dynamic=dynamic)
        return call
