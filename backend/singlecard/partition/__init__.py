"""Which ops go to TensorRT, which stay in PyTorch, and why."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from torch import fx

from singlecard.capture.layouts import symbols_promised
from singlecard.capture.program import Program, source_line
from singlecard.capture.symbols import (
    SizeNodes,
    is_host_value,
    is_number,
    note_host_numbers,
    symbols_in,
)
from singlecard.lowering.call import op_name
from singlecard.partition.islands import VIEWS, is_worth_its_call


@dataclass(frozen=True)
class Fallback:
    """An op left to eager PyTorch: its name, one sentence why, and the user's own line."""

    op: str
    reason: str
    line: str = ""


@dataclass(frozen=True)
class Segment:
    """Ops that run together: in one engine, or in eager PyTorch."""

    lowered: bool
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Partition:
    """A Program cut into segments, in the order in which they run."""

    segments: tuple[Segment, ...]
    fallback: tuple[Fallback, ...]
    ops: int
    lowered_ops: int


def is_counted(node: fx.Node) -> bool:
    """Ops count; taking an item of a tuple, or arithmetic on sizes, does not."""
    return node.target is not operator.getitem and not _is_size(node)


def _is_size(node: fx.Node) -> bool:
    """Tell whether the host works a value out: a size, or a number that follows from floats."""
    return isinstance(node.meta.get("val"), int) or is_host_value(node)


def divide(
    program: Program, refusal: Callable[[fx.Node], str | None], min_block_size: int | None = None
) -> Partition:
    """Cut a Program into as few segments as its unsupported ops allow.

    Each op gets a level: the number of times that the way to it changes between TensorRT and
    PyTorch. Ops of one level and kind share a segment, so an op left out costs one boundary
    however many branches pass by it, and segments cannot wait for each other. Engines smaller than
    ``min_block_size`` go back to PyTorch; without it, those that are not worth their call.
    """
    reasons: dict[fx.Node, str] = {}
    note_host_numbers(program.graph)
    for node in program.calls():
        if node.target is not operator.getitem and not _is_size(node):
            reason = refusal(node)
            if reason is not None:
                reasons[node] = reason
    segments = _segments(program, reasons, frozenset())
    while small := _small_blocks(segments, min_block_size):
        reasons.update(small)  # blocks that stood behind these may move apart, and be small now
        segments = _segments(program, reasons, frozenset())
    if again := _crossing_again(segments):
        segments = _segments(program, reasons, again)
    counted = [node for node in program.calls() if is_counted(node)]
    fallback = tuple(
        Fallback(op_name(node), reason, source_line(node)) for node, reason in reasons.items()
    )
    return Partition(segments, fallback, len(counted), len(counted) - len(reasons))


def _small_blocks(segments: Sequence[Segment], min_block_size: int | None) -> dict[fx.Node, str]:
    """Return the ops of engines that would be too small, each with the reason."""
    reasons: dict[fx.Node, str] = {}
    for segment in segments:
        counted = [node for node in segment.nodes if is_counted(node)]
        if not segment.lowered or not counted:
            continue
        block = f"a block of {len(counted)} op" + ("s" if len(counted) > 1 else "")
        if min_block_size is not None:
            reason = f"{block} is smaller than min_block_size = {min_block_size}"
            is_small = len(counted) < min_block_size
        else:
            reason = (
                f"{block} between parts in PyTorch would not be worth the call of an engine "
                "(min_block_size=1 keeps such blocks)"
            )
            is_small = len(segments) > 1 and not is_worth_its_call(segment.nodes)
        if is_small:
            reasons |= dict.fromkeys(counted, reason)
    return reasons


#: Ops whose result is another look at their argument.
_LOOKS = VIEWS | {torch.ops.aten._to_copy.default}


def _crossing_again(segments: Sequence[Segment]) -> frozenset[fx.Node]:
    """Return casts and views for PyTorch alone, of values that leave their engine as they are too.

    An engine that gives a value in FP16 for the next engine, and its cast to FP32 for the ops
    between them, writes it twice; PyTorch casts what it needs.
    """
    eager = {node for segment in segments if not segment.lowered for node in segment.nodes}
    return frozenset(
        node
        for segment in segments
        if segment.lowered
        for node in segment.outputs
        if node.target in _LOOKS
        and node.args[0] in segment.outputs
        and all(user in eager for user in node.users)
    )


def _segments(
    program: Program, reasons: Mapping[fx.Node, str], in_pytorch: Set[fx.Node]
) -> tuple[Segment, ...]:
    level: dict[fx.Node, int] = {}
    groups: dict[int, list[fx.Node]] = {}
    for node in program.calls():
        if _is_size(node) and not any(arg in level for arg in node.all_input_nodes):
            continue  # it follows from the inputs, and is worked out wherever it is needed
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and source in level:
            level[node] = level[source]
        else:
            # Even levels are TensorRT's, odd ones PyTorch's. PyTorch begins: what it needs nothing
            # of an engine for keeps no engine waiting.
            in_eager = node in reasons or node in in_pytorch or _is_size(node)
            kind = 1 if in_eager else 0
            before = [level[arg] for arg in node.all_input_nodes if arg in level]
            latest = max(before, default=-1)
            level[node] = latest + ((latest & 1) ^ kind)
        groups.setdefault(level[node], []).append(node)
    sizes = _sizes_in(program)
    return tuple(_segment(sizes, group, at % 2 == 0) for at, group in sorted(groups.items()))


def beginning_of(program: Program, segment: Segment, count: int) -> Segment:
    """Return the first ops of a segment as a segment."""
    return _segment(_sizes_in(program), segment.nodes[:count], segment.lowered)


def _sizes_in(program: Program) -> SizeNodes:
    sizes = SizeNodes(program.graph)
    for node in program.calls():
        sizes.learn(node)
    return sizes


def _segment(sizes: SizeNodes, nodes: Sequence[fx.Node], lowered: bool) -> Segment:
    inside = set(nodes)
    inputs: dict[fx.Node, None] = {}
    outputs: dict[fx.Node, None] = {}
    for node in nodes:
        for arg in node.all_input_nodes:
            if arg not in inside and arg.op != "get_attr":
                inputs[arg] = None
        if any(user not in inside for user in node.users):
            outputs[node] = None
    if lowered:
        inputs |= dict.fromkeys(_sizes_of(sizes, nodes, inputs))
    else:  # strides that an op was promised may follow from sizes that none of its tensors has
        told = map(sizes.symbol, symbols_promised(nodes))
        inputs |= {node: None for node in told if node is not None and node not in inside}
    return Segment(lowered, tuple(nodes), tuple(inputs), tuple(outputs))


def _sizes_of(
    sizes: SizeNodes, nodes: Iterable[fx.Node], inputs: Iterable[fx.Node]
) -> Iterator[fx.Node]:
    """Yield the sizes that an engine's tensors have and that no tensor which it is given shows."""
    given = [node.meta["val"] for node in inputs]
    shown = {
        size.node.expr
        for value in given
        for size in (value.shape if isinstance(value, torch.Tensor) else [value])
        if is_number(size)
    }
    symbols = symbols_in([*given, *(node.meta["val"] for node in nodes)])
    for symbol in dict.fromkeys(symbols):
        node = None if symbol in shown else sizes.symbol(symbol)
        if node is not None:
            yield node
