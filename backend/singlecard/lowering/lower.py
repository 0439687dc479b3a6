"""From a segment of a Program to a TensorRT network."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import Program, module_path
from singlecard.capture.quantized import dequantize
from singlecard.capture.spans import Triple
from singlecard.errors import LoweringError
from singlecard.faults import reason_of
from singlecard.lowering.call import Call, op_name
from singlecard.lowering.outputs import used_entries
from singlecard.lowering.sizes import Sizes, expression
from singlecard.lowering.table import table
from singlecard.network.net import Net
from singlecard.network.tensor import Tensor
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


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network ready to build.

    Attributes:
        net: the facade that owns the network and its constants.
        inputs: for each network input, its node in the Program.
        outputs: for each network output, its node.
        profiles: the range of each dynamic input, by input name.
        extents: for each network input that stands for a number, by its length alone, the number's
            place among the segment's inputs.
        in_place: for each output that lies in an input's memory, its place and the input's.
        layers: for each node, the place behind the last of the network's layers made for it.
    """

    net: Net
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    profiles: dict[str, Profile]
    in_place: dict[int, int]
    extents: dict[str, int]
    layers: tuple[tuple[fx.Node, int], ...] = ()

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


def lower(
    program: Program,
    segment: Segment,
    spans: Mapping[sympy.Symbol, Triple] | None = None,
    *,
    usual: bool = False,
) -> Lowered:
    """Make the network of a segment.

    Args:
        program: with types as they are computed with.
        segment: one of its segments.
        spans: the ranges that the user gave sizes.
        usual: make the network for the usual sizes alone, so that its plan tells all bytes.

    Raises:
        NodeRefused: names the op, with TensorRT's own words.
    """
    net = Net()
    values: dict[fx.Node, Any] = {}
    tensors = [node for node in segment.inputs if isinstance(node.meta["val"], torch.Tensor)]
    sizes = Sizes(net, spans or {})
    net.size_of = sizes.of
    sizes.limits = _limits(segment)
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
    extents: dict[str, int] = {}
    for place, node in enumerate(segment.inputs):
        if isinstance(node.meta["val"], torch.SymInt):
            make = functools.partial(_extent, net, sizes, profiles, extents, place, node)
            sizes.given.setdefault(expression(node.meta["val"]), make)
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
        sizes.given.clear()
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
    return Lowered(net, tuple(tensors), outputs, profiles, in_place, extents, tuple(layers))


@contextmanager
def _refusing(node: fx.Node) -> Iterator[None]:
    """Let whatever fails in work on one op be that op's refusal."""
    try:
        yield
    except Exception as error:
        raise NodeRefused(node, reason_of(error, f"lowering {op_name(node)}")) from error


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
    extents: dict[str, int],
    place: int,
    node: fx.Node,
) -> Tensor:
    """Add an input whose length is a number that no tensor has as its extent; it holds nothing."""
    name = extent_name(place)
    tensor = net.input(name, torch.bool, [-1])
    profiles[name], extents[name] = Profile(*sizes.ranges([node.meta["val"]])), place
    return tensor


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
        arguments = {name: _map(arg, value_of) for name, arg in given.items()}
        for name in call.numbers:
            if isinstance(arguments[name], Tensor) and isinstance(call.values[name], torch.SymInt):
                arguments[name] = net.reshape(arguments[name], [])  # a number has no dimensions
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
