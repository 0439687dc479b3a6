"""What runs a segment: eager PyTorch, the reference evaluator, or an engine on the card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.program import Program
from singlecard.capture.results import axis_order, laid_out
from singlecard.lowering.lower import Lowered
from singlecard.observe.topics import topic
from singlecard.partition import Segment
from singlecard.passes.rule import BY_LAYOUT
from singlecard.reference import evaluate
from singlecard.runtime.binding import Binding, feeds_of

aten = torch.ops.aten

log = topic("runtime")

_VIEWS = (aten.view.default, aten._unsafe_view.default)

#: Takes the values of a segment's inputs, returns those of its outputs.
Runner = Callable[[Sequence[Any]], Sequence[Any]]


def eager_runner(program: Program, segment: Segment) -> Runner:
    """Run the ops of a segment as PyTorch has them."""
    module = module_of(program, segment)

    def run(values: Sequence[Any]) -> Sequence[Any]:
        return module(*values)  # type: ignore[no-any-return]

    return run


def module_of(program: Program, segment: Segment) -> fx.GraphModule:
    """Return the ops of a segment as a module that takes and gives its values."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    root: dict[str, Any] = {}
    for node in segment.inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = {"val": node.meta["val"]}
    for node in segment.nodes:
        for arg in node.all_input_nodes:
            if arg.op == "get_attr" and arg not in copies:
                constant = program.constant(arg)
                assert constant is not None
                root[str(arg.target)] = constant.to(arg.meta["val"].device)
                copies[arg] = graph.get_attr(str(arg.target))
        copies[node] = graph.node_copy(node, lambda arg: copies[arg])
        if node.target in _VIEWS:
            copies[node].target = aten.reshape.default
        elif node.target in BY_LAYOUT:  # an engine's results lie as it likes
            source: Any = node.args[0]
            with graph.inserting_before(copies[node]):
                given = (copies[source], axis_order(source.meta["val"]))
                copies[node].update_arg(0, graph.call_function(laid_out, given))
    graph.output(tuple(copies[node] for node in segment.outputs))
    return fx.GraphModule(root, graph)


def pytorch_runner(program: Program, segment: Segment, compiler: str) -> Runner:
    """Run the ops of a segment in PyTorch: as it has them, or compiled by TorchInductor."""
    if compiler == "eager":
        return eager_runner(program, segment)
    module = module_of(program, segment)
    fakes = [node.meta["val"] for node in segment.inputs]
    try:
        call = torch._inductor.standalone_compile(module, fakes, dynamic_shapes="from_graph")
    except Exception as error:
        log.warning("TorchInductor cannot compile a part (%s): it runs in eager PyTorch", error)
        return eager_runner(program, segment)

    def run(values: Sequence[Any]) -> Sequence[Any]:
        return call(*values)  # type: ignore[no-any-return]

    return run


def reference_runner(lowered: Lowered, binding: Binding) -> Runner:
    """Run the arithmetic of the built network with PyTorch ops, on the inputs' device."""
    feed, names = feeds_of(binding), binding.output_names

    def run(values: Sequence[Any]) -> Sequence[Any]:
        feeds = {name: value.detach() for name, value in feed(values).items()}
        results = evaluate(lowered.net.definition, feeds)
        return [results[name] for name in names]

    return run
