"""Runs a model in PyTorch, through the same capture as the backend, and watches its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.backend import compile_in
from singlecard.capture.program import Program
from singlecard.options import Options
from singlecard.partition import divide
from singlecard.precision.points import Point, points_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.runners import eager_runner
from singlecard.session import Session
from singlecard_calib.observations import SAMPLED, Observations

#: Options that say what is made of a model, and nothing of the graph that is captured.
_AFTERWARDS = ("precision", "calibration", "targets", "strict", "execution")


class Collecting(Session):
    """A session that compiles nothing: its Programs run in PyTorch, and are watched.

    Graphs are those of the backend: simplified, batch norms folded, in FP32, because tensors have
    their names there.
    """

    def __init__(self, options: Mapping[str, Any] | Options | None, calls: int) -> None:
        given = dict(vars(options)) if isinstance(options, Options) else options
        if isinstance(given, Mapping):
            given = {key: value for key, value in given.items() if key not in _AFTERWARDS}
        super().__init__(Options.parse(given), "reference", False)
        self.seen = Observations()
        self.share = max(SAMPLED // max(calls, 1), 1)

    def backend(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        """Take a graph of Dynamo's."""
        return compile_in(self, graph, examples)

    def compile(self, program: Program, spans: Any = None) -> Executable:
        """Put a watcher behind every tensor of interest."""
        self._name(program)
        points = points_of(program)
        self.seen.add_graph(points)
        watchers: list[tuple[fx.Node, Callable[..., None], tuple[Any, ...]]] = [
            (node, look, (node,)) for node, look in self.seen.ranges.watch(program)
        ]
        watched = [point for point in points if self._excluded(point.node) is None]
        for name, (value, op) in _values(watched).items():
            watchers.append((value, self._look_at(name, op), (value,)))
        for point in watched:
            if point.op == "attention":
                name = point.operands[-1][0]
                look = self._look_at(name, point.op)
                args = tuple(point.node.args[:6])
                watchers.append((point.node, _probabilities(look), args))
        for watcher in watchers:
            insert(program, *watcher)
        partition = divide(program, lambda node: "it is calibrated", None)
        steps = [(segment, eager_runner(program, segment)) for segment in partition.segments]
        return Executable.of(program, steps)

    def _look_at(self, name: str, op: str) -> Callable[[torch.Tensor], None]:
        def look(value: torch.Tensor) -> None:
            kind = "" if name in self.seen.shared else op
            self.seen.of(name).add(name, value, kind, self.share)

        return look


def _values(points: Sequence[Point]) -> dict[str, tuple[fx.Node, str]]:
    """Return values to watch by name, each with the op that tells what its channels are."""
    found: dict[str, tuple[fx.Node, str]] = {}
    for point in points:
        for name, value in point.operands:
            if value is None:
                continue
            known = found.get(name, (value, ""))[1]
            op = point.op if point.op in ("linear", "convolution") else known
            found[name] = value, known if known == "linear" else op
    return found


def _probabilities(look: Callable[[torch.Tensor], None]) -> Callable[..., None]:
    """Work out attention's probabilities again, an item of the batch at a time."""

    def look_at_all(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> None:
        for part in probabilities(query, key, mask, is_causal, scale):
            look(part)

    return look_at_all


def probabilities(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> Iterator[torch.Tensor]:
    """Yield what attention multiplies its values with, for each item of the batch.

    Args:
        query: [..., heads, rows, width].
        key: [..., heads, columns, width]; several heads of the query may share one of the key.
        mask: boolean, true where a row sees a column, or added to the scores; None for no mask.
        is_causal: a row sees columns up to its own.
        scale: of the scores; None: 1 / sqrt(width).

    Yields:
        FP32 [heads, rows, columns]; zeros where a row sees no column.
    """
    query, key = query.float(), key.float()
    if query.ndim > 2 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    batch = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2])
    rows, columns = query.shape[-2], key.shape[-2]
    if is_causal:
        mask = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril()
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = (item.expand(*batch, *item.shape[-2:]) for item in (query, key))
    if mask is not None:
        mask = mask.expand(*batch, rows, columns)
    for place in itertools.product(*map(range, batch[:-1])):
        scores = query[place] @ key[place].transpose(-1, -2) * factor
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[place], float("-inf"))
        elif mask is not None:
            scores = scores + mask[place]
        yield torch._safe_softmax(scores, -1)


def insert(
    program: Program, behind: fx.Node, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Call a function with values of the graph for its effect."""
    last = program.placeholders[-1] if behind.op == "placeholder" else behind
    with program.graph.inserting_after(last):
        node = program.graph.call_function(function, args)
    node.meta["val"] = None
