"""Second moments of named tensors while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import Any

import torch
from torch import fx

from singlecard.backend import compile_in
from singlecard.capture.program import Program
from singlecard.options import Options
from singlecard.partition import divide
from singlecard.precision.points import points_of
from singlecard.report.measure import compiled_for_now
from singlecard.runtime.executable import Executable
from singlecard.runtime.runners import eager_runner
from singlecard.session import Session
from singlecard_calib.collect import insert
from singlecard_calib.feeding import Call


def watch(
    model: Callable[..., Any], data: Sequence[Call], tensors: Set[str]
) -> dict[str, torch.Tensor]:
    """Run a model in PyTorch, and sum up the second moments of tensors.

    Args:
        model: in evaluation mode.
        data: its calls.
        tensors: names of inputs of linear layers.

    Returns:
        By name, the sum of x xᵀ over all rows x: FP32 [channels, channels].
    """
    session = _Watching(tensors)
    with torch.no_grad(), compiled_for_now(model, session.backend) as run:
        for args, kwargs in data:
            run(*args, **kwargs)
    return session.moments


class _Watching(Session):
    def __init__(self, tensors: Set[str]) -> None:
        super().__init__(Options.parse(None), "reference", False)
        self.tensors = tensors
        self.moments: dict[str, torch.Tensor] = {}

    def backend(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(self, graph, examples)

    def compile(self, program: Program, spans: Any = None) -> Executable:
        self._name(program)
        values = {
            name: value
            for point in points_of(program)
            for name, value in point.operands
            if name in self.tensors and value is not None
        }
        for name, value in values.items():
            insert(program, value, self._look_at(name), (value,))
        partition = divide(program, lambda node: "it is watched", None)
        steps = [(segment, eager_runner(program, segment)) for segment in partition.segments]
        return Executable.of(program, steps)

    def _look_at(self, name: str) -> Callable[[torch.Tensor], None]:
        def look(value: torch.Tensor) -> None:
            rows = value.detach().float().reshape(-1, value.shape[-1])
            moments = (rows.T @ rows).cpu()
            known = self.moments.get(name)
            self.moments[name] = moments if known is None else known + moments

        return look
