"""How the segments of a compiled Program hang together: plain data that outlives its graph.

Values of a call have numbers, their slots. A slot holds an argument, what a segment gave, a
constant of the model that is a result itself, or a size that is worked out from others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.results import Result
from singlecard.capture.symbols import ON_HOST
from singlecard.partition import Segment


@dataclass(frozen=True)
class Slot:
    """Stands for the value in a slot."""

    number: int


@dataclass(frozen=True)
class Size:
    """A size: a function of numbers and of values in slots."""

    target: Callable[..., Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Constant:
    """A tensor of the model's, and the device that the caller finds it on."""

    value: torch.Tensor
    device: torch.device


@dataclass(frozen=True)
class Step:
    """One segment's place among the values.

    Attributes:
        lowered: whether a network computes it.
        inputs: slots, in the order in which its runner takes values.
        outputs: slots of what it returns.
        types: places among the inputs that PyTorch computes and a network reads, and the types
            that the network takes. Some kernels give another type than PyTorch says of them while
            a graph is captured, such as those of batch norm for running statistics in FP16.
    """

    lowered: bool
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    types: tuple[tuple[int, torch.dtype], ...] = ()


@dataclass(frozen=True)
class Wiring:
    """All that a call of a compiled Program does beside running its segments.

    Attributes:
        arguments: slots of the arguments that vary from call to call.
        positions: for each of them, its place in the flat list that AOTAutograd calls with.
        frozen: places in that list of the weights that were compiled in.
        steps: segments, in the order in which they run.
        outputs: what the graph computes: slots, numbers or None; results first, then the new values
            of mutated inputs, then sizes that views among the results need.
        results, mutations: see `singlecard.capture.program.Program`.
        constants, sizes: what other slots hold.
    """

    arguments: tuple[int, ...]
    positions: tuple[int, ...]
    frozen: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Any, ...]
    results: tuple[Result, ...]
    mutations: tuple[int, ...]
    constants: Mapping[int, Constant]
    sizes: Mapping[int, Size]


def map_slots(args: Any, value: Callable[[int], Any]) -> Any:
    """Put values in the place of slots, however deep they are nested."""
    return fx.node.map_aggregate(
        args, lambda arg: value(arg.number) if isinstance(arg, Slot) else arg
    )


def wiring_of(program: Program, segments: Sequence[Segment]) -> Wiring:
    """Return how a Program's segments hang together."""
    numbers: dict[fx.Node, int] = {}
    constants: dict[int, Constant] = {}
    sizes: dict[int, Size] = {}
    made = {node for segment in segments for node in segment.outputs}
    made.update(program.placeholders)

    def slot(node: fx.Node) -> int:
        if node in numbers:
            return numbers[node]
        number = numbers[node] = len(numbers)
        constant = program.constant(node)
        if constant is not None:
            constants[number] = Constant(constant, node.meta["val"].device)
        elif node not in made:
            assert not node.kwargs
            given = written_out if ON_HOST in node.meta else read
            args: Any = fx.node.map_aggregate(node.args, given)
            sizes[number] = Size(node.target, args)  # type: ignore[arg-type]
        return number

    def read(arg: Any) -> Any:
        return Slot(slot(arg)) if isinstance(arg, fx.Node) else arg

    def written_out(arg: Any) -> Any:
        """Write a single number of the model's out: what the host works out holds no tensor."""
        constant = program.constant(arg)
        return read(arg) if constant is None else constant.item()

    eager = {node for segment in segments if not segment.lowered for node in segment.outputs}
    steps = []
    arguments = tuple(slot(node) for node in program.placeholders)
    for segment in segments:
        types = tuple(
            (place, node.meta["val"].dtype)
            for place, node in enumerate(segment.inputs)
            if segment.lowered and node in eager and isinstance(node.meta["val"], torch.Tensor)
        )
        inputs, outputs = (tuple(map(slot, part)) for part in (segment.inputs, segment.outputs))
        steps.append(Step(segment.lowered, inputs, outputs, types))
    return Wiring(
        arguments,
        program.positions,
        tuple(program.frozen),
        tuple(steps),
        tuple(map(read, program.outputs)),
        program.results,
        program.mutations,
        constants,
        sizes,
    )
