"""Programs of any number of blocks, and what work on them takes: for tests of how work grows.

To trace a thousand blocks takes a minute; so one block is captured by the way of ``torch.compile``,
and its ops, with weights of their own, are put one behind the other as often as asked.
"""

from __future__ import annotations

import functools
import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import singlecard
from singlecard.capture.program import Program
from singlecard.capture.results import Result
from tests.graphs import program_of

WIDTH = 4


class Layer(nn.Module):
    """A layer with weights, and what follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x))


class Residual(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class Gated(Layer):
    """Reads a value that all blocks read."""

    def forward(self, x: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * shared


class Join(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Dense(nn.Module):
    """Reads the last four values."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4 * WIDTH, WIDTH)

    def forward(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor
    ) -> torch.Tensor:
        return torch.relu(self.linear(torch.cat([a, b, c, d], -1)))


class Coded(nn.Module):
    """A residual connection around a product with a weight that is held as codes."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Buffer(torch.arange(WIDTH * WIDTH, dtype=torch.int8).reshape(WIDTH, WIDTH))
        self.scale = nn.Buffer(torch.tensor(0.01))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x @ ((self.codes.float() - 3.0) * self.scale)


class Known(nn.Module):
    """A residual addition of constants, and one of what varies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return x * (known + self.weight)


class Doubled(nn.Module):
    """A constant that is added to itself: 2^n ways lead to its source."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, known: torch.Tensor) -> torch.Tensor:
        return (known + known) * self.weight


class Counted(nn.Module):
    """Arithmetic of integers, that a table is read with."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = (x + x).clamp(0, 15)
        return (places + self.table(places).sum(-1).long()).clamp(0, 15)


@functools.cache
def captured(kind: type[nn.Module]) -> Program:
    """Capture a block; all its inputs are alike."""
    torch.manual_seed(0)
    inputs = {Counted: torch.ones(2, dtype=torch.int64)}
    example = inputs.get(kind, torch.ones(2, WIDTH))
    block = kind().eval()
    count = block.forward.__code__.co_argcount - 1
    program = program_of(block, *(example.clone() for _ in range(count)))
    for node in program.graph.nodes:
        if isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"] = _same(node.meta["val"])
    return program


#: What all values are of: PyTorch does not mix values of two captures.
_MODE = FakeTensorMode()


def _same(value: torch.Tensor) -> torch.Tensor:
    with _MODE:
        return torch.empty_strided(tuple(value.shape), value.stride(), dtype=value.dtype)


class Grower:
    """Makes a Program of captured blocks."""

    def __init__(self, like: type[nn.Module]) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.frozen: dict[int, torch.Tensor] = {}
        self.count = 0
        #: The Program's one input, as a block of this kind takes it.
        self.input = self.graph.placeholder("x")
        self.input.meta = dict(captured(like).placeholders[0].meta)

    def apply(self, kind: type[nn.Module], *inputs: fx.Node) -> fx.Node:
        """Put a block behind some values; return its result."""
        block = captured(kind)
        copies = dict(zip(block.placeholders, inputs, strict=True))
        self.count += 1
        for node in block.graph.nodes:
            if node.op == "get_attr":
                copies[node] = self.weight(block, node)
            elif node.op == "call_function":
                copies[node] = self.graph.node_copy(node, copies.__getitem__)
                path = f"L['self'].blocks.{self.count}"
                copies[node].meta["nn_module_stack"] = {path: (path, kind)}
        (result,) = block.outputs
        return copies[result]

    def weight(self, block: Program, like: fx.Node) -> fx.Node:
        """Add a weight like one of a block."""
        held = block.constant(like)
        assert held is not None
        place = len(self.frozen) + 1
        own = held + place / 4096 if held.is_floating_point() else held.clone()
        self.frozen[place] = own
        self.root.register_buffer(f"frozen_{place}", own)
        node = self.graph.get_attr(f"frozen_{place}")
        node.meta = dict(like.meta)
        return node

    def program(self, result: fx.Node) -> Program:
        self.graph.output((result,))
        module = fx.GraphModule(self.root, self.graph)
        return Program(module, (0,), self.frozen, (), (Result(owner=0),))


def _row(kind: type[nn.Module]) -> Callable[[int], Program]:
    def build(count: int) -> Program:
        grower = Grower(kind)
        value = grower.input
        for _ in range(count):
            value = grower.apply(kind, value)
        return grower.program(value)

    return build


def _shared(count: int) -> Program:
    """All blocks read the first one's result."""
    grower = Grower(Layer)
    shared = value = grower.apply(Layer, grower.input)
    for _ in range(count):
        value = grower.apply(Gated, value, shared)
    return grower.program(value)


def _diamonds(count: int, depth: int = 2) -> Program:
    """Two branches from a value, joined; each branch is such a diamond of its own."""
    grower = Grower(Layer)

    def diamond(value: fx.Node, depth: int) -> fx.Node:
        value = grower.apply(Layer, value)
        if not depth:
            return value
        return grower.apply(Join, diamond(value, depth - 1), diamond(value, depth - 1))

    value = grower.input
    while grower.count < count:
        value = diamond(value, depth)
    return grower.program(value)


def _dense(count: int) -> Program:
    """Each block reads the four before it."""
    grower = Grower(Layer)
    values = [grower.input] * 4
    for _ in range(count):
        values = [*values[1:], grower.apply(Dense, *values)]
    return grower.program(values[-1])


def _known(count: int) -> Program:
    """Constants that follow from constants, each read where something varies."""
    grower = Grower(Layer)
    value = grower.input
    known = grower.weight(captured(Known), captured(Known).graph.find_nodes(op="get_attr")[0])
    for _ in range(count):
        known = grower.apply(Doubled, known)
        value = grower.apply(Known, value, known)
    return grower.program(value)


#: What makes a Program of so many blocks.
PROGRAMS: dict[str, Callable[[int], Program]] = {
    "chain": _row(Layer),
    "tower": _row(Residual),
    "diamonds": _diamonds,
    "dense": _dense,
    "shared": _shared,
    "codes": _row(Coded),
    "constants": _known,
    "integers": _row(Counted),
}

#: Whose functions count: the package's, and those of PyTorch's graphs, which it walks.
_COUNTED = (str(Path(singlecard.__file__).parent), str(Path(fx.__file__).parent))


def steps_of(work: Callable[[], Any]) -> Counter[str]:
    """Count how often each function runs in some work; each item of a generator is a run."""
    runs: Counter[CodeType] = Counter()

    def called(frame: FrameType, event: str, argument: Any) -> None:
        runs[frame.f_code] += 1

    sys.settrace(called)
    try:
        work()
    finally:
        sys.settrace(None)
    steps: Counter[str] = Counter()
    for code, count in runs.items():
        if code.co_filename.startswith(_COUNTED):
            file = Path(code.co_filename).name
            steps[f"{code.co_qualname} ({file}:{code.co_firstlineno})"] += count
    return steps


def bytes_of(work: Callable[[], Any]) -> int:
    """Return the bytes that Python holds at the most in some work, beyond those before.

    Garbage counts as held: no collector runs while a model is compiled.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        if was_enabled:
            gc.enable()
