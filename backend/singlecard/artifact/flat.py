"""From a program of ``torch.export`` to the kind of graph that Dynamo hands over.

Weights, buffers and constants become inputs, as they are of Dynamo's graphs, and calls of ATen
become the calls of ``torch.nn.functional`` that capture keeps whole: so a model becomes the same
engine by ``torch.export`` as by ``torch.compile``.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram

from singlecard.errors import ArtifactError

aten = torch.ops.aten
_hops = torch.ops.higher_order

#: What capture knows by PyTorch's own function; arguments have the same order and names.
_AS_CALLED = {
    aten.linear.default: F.linear,
    aten.scaled_dot_product_attention.default: F.scaled_dot_product_attention,
}


@dataclass(frozen=True)
class Flat:
    """A graph with flat inputs and outputs.

    Attributes:
        module: the graph; its inputs are ``held``, then the inputs that vary.
        held: the model's own tensors, each once, by the first name that the model has for it.
        varying: places of the inputs that vary, among the leaves of the call's arguments.
        examples: what the graph is captured with.
        mode: what its examples were made in.
    """

    module: fx.GraphModule
    held: dict[str, torch.Tensor]
    varying: tuple[int, ...]
    examples: tuple[Any, ...]
    mode: FakeTensorMode


def flatten_program(program: ExportedProgram) -> Flat:
    """Return a program as one flat graph.

    Raises:
        ArtifactError: it needs an object that is no tensor.
    """
    source = program.module(check_guards=False)
    assert isinstance(source, fx.GraphModule)
    mode = detect_fake_mode([node.meta.get("val") for node in source.graph.nodes])
    mode = mode or FakeTensorMode()
    flattening = _Flattening(source, mode)
    flattening.run()
    module = fx.GraphModule(flattening.root, flattening.graph)
    examples = (*flattening.held.values(), *flattening.examples)
    return Flat(module, flattening.held, tuple(flattening.varying), examples, mode)


class _Flattening:
    """Copies a graph node by node."""

    def __init__(self, source: fx.GraphModule, mode: FakeTensorMode) -> None:
        self.source, self.mode = source, mode
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.held: dict[str, torch.Tensor] = {}
        self.varying: list[int] = []
        self.examples: list[Any] = []
        self._inputs: dict[int, fx.Node] = {}

    def run(self) -> None:
        values: dict[fx.Node, Any] = {}
        for node in self.source.graph.find_nodes(op="get_attr"):
            found = _attribute(self.source, str(node.target))
            if isinstance(found, torch.Tensor):
                values[node] = self._hold(node, found)
        for place, node in enumerate(self.source.graph.find_nodes(op="placeholder")):
            value = node.meta.get("val")
            if not isinstance(value, (torch.Tensor, torch.SymInt)):
                values[node] = value  # every call has the same
                continue
            copy = values[node] = self.graph.placeholder(f"input_{place}")
            copy.meta = {**node.meta, "example_value": value}
            self.varying.append(place)
            self.examples.append(value)
        self.graph.output(self._copy(self.source, values))
        self.graph.lint()

    def _hold(self, node: fx.Node, tensor: torch.Tensor) -> fx.Node:
        if id(tensor) not in self._inputs:
            with self.mode:
                fake = self.mode.from_tensor(tensor, static_shapes=True)
            copy = self.graph.placeholder(f"held_{len(self.held)}")
            copy.meta = {
                "example_value": fake,
                "tensor_dict": {"_dynamo_static_input_type": "unguarded"},
            }
            self.held[str(node.target)] = tensor
            self._inputs[id(tensor)] = copy
        return self._inputs[id(tensor)]

    def _copy(self, module: fx.GraphModule, values: dict[fx.Node, Any]) -> Any:
        """Copy the calls of a graph; return what it gives."""
        for node in module.graph.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            if node in values or (node.op == "get_attr" and not node.users):
                continue
            if node.op == "get_attr":
                values[node] = self._attribute(module, node)
            elif node.target is _hops.wrap_with_set_grad_enabled:
                values[node] = self._inline(module, node, 1, values)
            elif node.target is _hops.wrap_with_autocast:
                values[node] = self._autocast(module, node, values)
            elif node.target is not aten._assert_tensor_metadata.default:
                values[node] = self._call(node, values)
        raise AssertionError("a graph without an output")

    def _call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.target is operator.getitem:
            source: Any = node.args[0]
            if isinstance(values[source], (tuple, list)):  # what an inlined graph gives
                return values[source][node.args[1]]
        copy = self.graph.node_copy(node, values.__getitem__)
        copy.meta = {**node.meta, "example_value": node.meta.get("val")}
        target: Any = node.target
        copy.target = _AS_CALLED.get(target, target)
        return copy

    def _attribute(self, module: fx.GraphModule, node: fx.Node) -> Any:
        """Keep the branches of control flow; they are graphs of their own."""
        found = _attribute(module, str(node.target))
        if not isinstance(found, fx.GraphModule):
            raise ArtifactError(
                f"the model holds a {type(found).__name__} ({node.target}), which artifacts cannot "
                "hold: keep its state in tensors"
            )
        if all(user.target in _INLINED for user in node.users):
            return found
        name = f"branch_{len(self.root)}"
        self.root[name] = found
        return self.graph.get_attr(name)

    def _inline(
        self, module: fx.GraphModule, node: fx.Node, place: int, values: dict[fx.Node, Any]
    ) -> Any:
        """Copy the graph that a call wraps, in its place."""
        inner = values[node.args[place]]  # type: ignore[index]
        given = fx.node.map_arg(node.args[place + 1 :], values.__getitem__)
        inputs = inner.graph.find_nodes(op="placeholder")
        return self._copy(inner, dict(zip(inputs, given, strict=True)))

    def _autocast(self, module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """Enter and leave autocast around what it wraps, as Dynamo's graphs do."""
        entered = self.graph.call_function(torch.amp.autocast_mode._enter_autocast, node.args[:4])
        result = self._inline(module, node, 4, values)
        self.graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
        return result


_INLINED = (_hops.wrap_with_set_grad_enabled, _hops.wrap_with_autocast)


def _attribute(module: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module)
