"""From a segment of a Program to a TensorRT network."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program, module_path
from singlecard.capture.quantized import dequantize
from singlecard.capture.spans import Triple
from singlecard.capture.symbols import expression, is_number, symbols_in
from singlecard.errors import LoweringError
from singlecard.faults import reason_of
from singlecard.lowering.call import Call, op_name
from singlecard.lowering.outputs import used_entries
from singlecard.lowering.ranges import choose_ranges, ranges_around
from singlecard.lowering.sizes import Sizes
from singlecard.lowering.table import table
from singlecard.network.net import Net
from singlecard.network.tensor import Size, Tensor
from singlecard.network.types import BYTES
from singlecard.partition import Segment


class NodeRefused(LoweringError):
    """One op could not be lowered, although its declaration accepts it."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


@dataclass(frozen=True)
class Profile:
    """The range of one dynamic input: smallest, most likely and largest shape."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class Extent:
    """A number that a network reads from the length of an input, which holds nothing.

    Attributes:
        place: of the number among the segment's inputs.
        less: the length is the number less this: what is negative has no length.
    """

    place: int
    less: int = 0


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready to build.

    Attributes:
        net: the facade that owns the network and its constants.
        inputs: for each network input, its node in the Program.
        outputs: for each network output, its node.
        profiles: the range of each dynamic input, by input name.
        extents: for each network input that stands for a number by its length alone, see `Extent`.
        operands: for each network input that holds a number, the number's place among the segment's
            inputs, and the input's type.
        in_place: for each output that lies in an input's memory, its place and the input's.
        layers: for each node, the place behind the last of the network's layers made for it.
    """

    net: Net
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    profiles: dict[str, Profile]
    in_place: dict[int, int]
    extents: dict[str, Extent]
    layers: tuple[tuple[fx.Node, int], ...] = ()
    operands: dict[str, tuple[int, torch.dtype]] = field(default_factory=dict)

    def makers_by_layer(self) -> dict[str, fx.Node]:
        """Return for the name of each layer the node that it was made for."""
        found: dict[str, fx.Node] = {}
        first = 0
        for node, last in self.layers:
            for place in range(first, last):
                found[self.net.definition.get_layer(place).name] = node
            first = last
        return found


def input_name(index: int) -> str:
    return f"input_{index}"


def output_name(index: int) -> str:
    return f"output_{index}"


def extent_name(place: int) -> str:
    return f"extent_{place}"


def operand_name(place: int) -> str:
    return f"operand_{place}"


def lower(
    program: Program,
    segment: Segment,
    spans: Mapping[sympy.Symbol, Triple] | None = None,
    *,
    usual: bool = False,
    around: float | None = None,
) -> Lowered:
    """Make the network of a segment.

    Args:
        program: with types as they are computed with.
        segment: one of its segments.
        spans: the ranges that the user gave sizes.
        usual: make the network for the usual sizes alone, so that its plan tells all bytes.
        around: narrow the ranges to this share of the ways from the example's sizes to their ends.

    Raises:
        NodeRefused: names the op, with TensorRT's own words.
        LoweringError: no sizes in the ranges meet what the model asks of them.
    """
    net = Net()
    values: dict[fx.Node, Any] = {}
    tensors = [node for node in segment.inputs if isinstance(node.meta["val"], torch.Tensor)]
    sizes = Sizes(net, _ranges(program, segment, spans or {}, around))
    net.size_of = sizes.of
    profiles: dict[str, Profile] = {}
    if usual:
        for node in segment.inputs:
            value = node.meta["val"]
            sizes.settle(value.shape if isinstance(value, torch.Tensor) else [value])
    for index, node in enumerate(tensors):
        fake = node.meta["val"]
        if usual:
            shape = [int(sizes.of(size)) for size in fake.shape]  # type: ignore[arg-type]
            values[node] = net.input(input_name(index), fake.dtype, shape)
            continue
        shape = [-1 if isinstance(size, torch.SymInt) else size for size in fake.shape]
        values[node] = net.input(input_name(index), fake.dtype, shape)
        sizes.learn(fake.shape, values[node])
        if -1 in shape:
            profiles[input_name(index)] = Profile(*sizes.ranges(fake.shape))
    extents: dict[str, Extent] = {}
    operands: dict[str, tuple[int, torch.dtype]] = {}
    for place, node in enumerate(segment.inputs):
        value = node.meta["val"]
        if isinstance(value, torch.SymInt):
            make = functools.partial(_extent, net, sizes, profiles, extents, place, value)
            sizes.extents.setdefault(expression(value), make)
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            kind = torch.int64 if isinstance(value, torch.SymInt) else torch.float32
            take = functools.partial(_operand, net, operands, place, kind)
            sizes.operands.setdefault(value.node.expr, take)
    layers: list[tuple[fx.Node, int]] = []
    for node in tensors:
        if node.meta["val"].dtype in BYTES:
            values[node] = net.cast(values[node], torch.int32)
    try:
        for node in segment.nodes:
            with _refusing(node):
                _lower_node(net, program, sizes, node, values)
            layers.append((node, net.definition.num_layers))
    finally:  # no collector may come by for long: a network goes when nobody holds it
        net.forget_op()
        sizes.forget()
    outputs = tuple(segment.outputs)
    for index, node in enumerate(outputs):
        with _refusing(node), net.scope(f"{module_path(node)}/output"):
            kind = node.meta["val"].dtype
            made = net.cast(values[node], kind) if kind in BYTES else values[node]
            net.mark_output(made, output_name(index))
        layers.append((node, net.definition.num_layers))
    in_place = {
        index: tensors.index(node.args[0])  # type: ignore[arg-type]
        for index, node in enumerate(outputs)
        if node.target == ops.update_cache
    }
    return Lowered(
        net, tuple(tensors), outputs, profiles, in_place, extents, tuple(layers), operands
    )


@contextmanager
def _refusing(node: fx.Node) -> Iterator[None]:
    """Let whatever fails in work on one op be that op's refusal."""
    try:
        yield
    except Exception as error:
        raise NodeRefused(node, reason_of(error, f"lowering {op_name(node)}")) from error


def _ranges(
    program: Program,
    segment: Segment,
    spans: Mapping[sympy.Symbol, Triple],
    around: float | None,
) -> dict[sympy.Symbol, Triple]:
    """Choose the ranges of all sizes that a segment is given."""
    given = [node.meta["val"] for node in segment.inputs]
    values = [value for value in given if isinstance(value, (torch.Tensor, torch.SymInt))]
    symbols = set(symbols_in(values))
    if not symbols:
        return {}
    sizes = (
        size
        for value in values
        for size in (value.shape if isinstance(value, torch.Tensor) else [value])
    )
    environment = next(size.node.shape_env for size in sizes if is_number(size))
    extents = {*_extents_of(program), *symbols_in([*_tensors(given)])}
    ranges = choose_ranges(symbols, environment, spans, _limits(segment), extents)
    if around is None:
        return ranges
    narrowed = ranges_around(ranges, environment, around)
    if narrowed is None:
        raise LoweringError("the sizes at hand are outside of the ranges")
    return narrowed


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    return (value for value in values if isinstance(value, torch.Tensor))


def _extents_of(program: Program) -> Iterator[sympy.Symbol]:
    """Yield the symbols that are extents of the tensors that a Program is called with."""
    yield from symbols_in([*_tensors(node.meta.get("val") for node in program.placeholders)])


def _limits(segment: Segment) -> dict[sympy.Symbol, int]:
    """Return the largest lengths that fit into the caches that a segment writes to."""
    limits: dict[sympy.Symbol, int] = {}
    for node in segment.nodes:
        if node.target == ops.update_cache:
            cache, update = (arg.meta["val"].shape[2] for arg in node.all_input_nodes[:2])
            symbol = expression(update)
            if isinstance(symbol, sympy.Symbol) and isinstance(cache, int):
                limits[symbol] = min(cache, limits.get(symbol, cache))
    return limits


def _extent(
    net: Net,
    sizes: Sizes,
    profiles: dict[str, Profile],
    extents: dict[str, Extent],
    place: int,
    number: torch.SymInt,
) -> Size:
    """Add an input whose length is a number that no tensor has as its extent; it holds nothing."""
    name, span = extent_name(place), sizes.range(number)
    tensor, less = net.input(name, torch.bool, [-1]), min(span[0], 0)
    profiles[name] = Profile(*((value - less,) for value in span))
    extents[name] = Extent(place, less)
    return net.size_math("SUM", net.size(tensor, 0), less)


def _operand(
    net: Net,
    operands: dict[str, tuple[int, torch.dtype]],
    place: int,
    kind: torch.dtype,
) -> Tensor:
    """Add an input that holds a number that the caller gives."""
    operands[operand_name(place)] = place, kind
    return net.input(operand_name(place), kind, [1])


def _lower_node(
    net: Net, program: Program, sizes: Sizes, node: fx.Node, values: dict[fx.Node, Any]
) -> None:
    def value_of(arg: Any) -> Any:
        if not isinstance(arg, fx.Node):
            return arg
        if arg not in values:
            if arg.op == "get_attr":
                constant = program.constant(arg)
                assert constant is not None
                values[arg] = net.constant(constant)
            else:
                values[arg] = sizes.of(arg.meta["val"])
        return values[arg]

    if node.target is operator.getitem:
        values[node] = value_of(node.args[0])[node.args[1]]
        return
    call = Call.of(node)
    path = module_path(node)
    with net.scope(f"{path}/{op_name(node)}"):
        given = dict(call.arguments)
        if node.target is dequantize and given["kind"] == "int4":  # two codes to a byte
            codes = program.constant(given["codes"])
            assert codes is not None
            given["codes"] = net.constant_int4(codes)
        for name in (*call.numbers, *table()[node.target].operands):
            if is_number(call.values[name]):
                number = sizes.operand(call.values[name])
                if isinstance(number, Tensor):  # a number has no dimensions
                    number = net.reshape(number, [])
                given[name] = number
        arguments = {name: _map(arg, value_of) for name, arg in given.items()}
        net.given, net.result, net.used = call.values, call.result, frozenset(used_entries(call))
        result = table()[node.target].lower(net, *arguments.values())
    _check(node, result)
    values[node] = result


def _map(arg: Any, value_of: Any) -> Any:
    if isinstance(arg, (list, tuple)):
        return [value_of(item) for item in arg]
    return value_of(arg)


def _check(node: fx.Node, result: Any) -> None:
    """Compare what a converter made with what PyTorch says of the op."""
    made = result if isinstance(result, (list, tuple)) else [result]
    told = node.meta["val"]
    told = told if isinstance(told, (list, tuple)) else [told]
    for tensor, fake in zip(made, told, strict=False):
        if not isinstance(tensor, Tensor) or not isinstance(fake, torch.Tensor):
            continue
        kind = torch.int32 if fake.dtype in BYTES else fake.dtype
        if tensor.dtype != kind or not _fits(tensor.shape, fake.shape):
            raise LoweringError(
                f"the lowering of {op_name(node)} gives {tensor.dtype} {list(tensor.shape)}, "
                f"PyTorch {fake.dtype} {list(fake.shape)}: please report this"
            )


def _fits(made: Sequence[int], told: Sequence[Any]) -> bool:
    return len(made) == len(told) and all(
        extent == -1 or isinstance(size, torch.SymInt) or extent == size
        for extent, size in zip(made, told, strict=True)
    )
