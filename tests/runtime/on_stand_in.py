"""Whole models on the stand-in: engines are built for real, and run by the reference evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tensorrt_rtx as real
import torch
from torch import fx

from singlecard import backend, recalled, session
from singlecard.artifact import captured, loading
from singlecard.artifact.loading import Loaded
from singlecard.lowering.lower import Lowered
from singlecard.network.types import torch_from_trt
from singlecard.options import Options
from singlecard.reference import evaluate
from singlecard.runtime.binding import Binding
from singlecard.runtime.engine import EngineRunner
from tests.artifact import machine as artifacts
from tests.backend import machine as compiled
from tests.runtime.stand_in import Machine, Spec

TARGET = "sm89"


class OnStandIn:
    """A process whose card is the stand-in.

    Attributes:
        faults: what the next engines have: fields of `Spec`.
    """

    def __init__(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine, self.faults = machine, dict[str, Any]()
        for name in dir(real):  # the builder is the real one
            if not hasattr(machine.library, name):
                setattr(machine.library, name, getattr(real, name))
        process = self

        class Runner(EngineRunner):
            def __init__(
                self, plan: Any, binding: Binding, held: object = None, **given: Any
            ) -> None:
                member = getattr(plan, "member", None)
                lowered = artifacts.NETWORKS[member] if member else compiled.NETWORKS[plan]
                spec = spec_of(lowered, binding, process.faults)
                super().__init__(machine.plan(spec), binding, **given)

        for module in (session, recalled, loading):
            monkeypatch.setattr(module, "EngineRunner", Runner)
        monkeypatch.setattr(captured, "Session", artifacts.Recording)
        monkeypatch.setattr(loading, "card_refusal", lambda tensors: None)
        monkeypatch.setattr(loading, "target_of", lambda device: TARGET)

    def compile(self, model: torch.nn.Module, **options: Any) -> Callable[..., Any]:
        """Compile a model as `torch.compile` does on a card."""
        chosen = Options.parse({"targets": TARGET, "min_block_size": 1, **options})

        def compiler(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
            return backend.compile_in(compiled.Recording(chosen, "engine", True), graph, examples)

        call: Callable[..., Any] = torch.compile(model, backend=compiler)
        return call

    def load(
        self, model: torch.nn.Module, *args: torch.Tensor, fallback: bool, **given: Any
    ) -> Loaded:
        """Export a model, and load it again."""
        path = self.machine.folder / "model.singlecard"
        options = {"targets": TARGET, "min_block_size": 1}
        artifacts.export(model, args, None, path, options=options, fallback=fallback)
        return loading.load(path, device="cpu", **given)


def spec_of(lowered: Lowered, binding: Binding, faults: dict[str, Any]) -> Spec:
    """Return what the stand-in's engine of a network is."""
    network = lowered.net.definition
    inputs = [network.get_input(at) for at in range(network.num_inputs)]
    outputs = {item.name: item for item in map(network.get_output, range(network.num_outputs))}
    names = binding.output_names

    def compute(values: list[torch.Tensor]) -> list[torch.Tensor]:
        feeds = dict(zip((item.name for item in inputs), values, strict=True))
        results = evaluate(network, feeds)
        return [results[name] for name in names]

    return Spec(
        inputs={item.name: (torch_from_trt(item.dtype), tuple(item.shape)) for item in inputs},
        outputs={name: torch_from_trt(outputs[name].dtype) for name in names},
        shapes=lambda shapes: [tuple(outputs[name].shape) for name in names],
        compute=compute,
        **{"weights": 4096, **faults},
    )
