"""What runs a segment: eager PyTorch, the reference evaluator, or an engine on the card."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.layouts import (
    CONTIGUOUS,
    VIEWS,
    keep_promise,
    laid_out,
    layout_of,
    promised,
    restrided,
)
from singlecard.capture.program import Program
from singlecard.capture.symbols import is_number
from singlecard.lowering.lower import Lowered
from singlecard.observe.topics import topic
from singlecard.partition import Segment
from singlecard.reference import evaluate
from singlecard.runtime.binding import Binding, feeds_of

aten = torch.ops.aten

log = topic("runtime")

#: Takes the values of a segment's inputs, returns those of its outputs.
Runner = Callable[[Sequence[Any]], Sequence[Any]]


def eager_runner(program: Program, segment: Segment) -> Runner:
    """Run the ops of a segment as PyTorch has them."""
    module, weights = module_of(program, segment), _followed_by(program, segment).values()
    module.graph.owning_module = None  # they hold one another: it goes when it is let go

    def run(values: Sequence[Any]) -> Sequence[Any]:
        found = [weight() for weight in weights]
        return module(*values, *found)  # type: ignore[no-any-return]

    return run


def _followed_by(program: Program, segment: Segment) -> dict[fx.Node, weakref.ref[torch.Tensor]]:
    """Return the weights that a segment reads and its Program does not hold."""
    if not program.followed:
        return {}
    return {
        arg: program.followed[str(arg.target)]
        for node in segment.nodes
        for arg in node.all_input_nodes
        if arg.op == "get_attr" and str(arg.target) in program.followed
    }


def module_of(program: Program, segment: Segment) -> fx.GraphModule:
    """Return the ops of a segment as a module that takes and gives its values.

    Ops that read memory get their arguments as eager PyTorch lays them out. Weights that the
    Program does not hold are taken behind the segment's inputs.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    root: dict[str, Any] = {}
    for node in (*segment.inputs, *_followed_by(program, segment)):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = {"val": node.meta["val"]}
    sources = {
        node.meta["val"].node.expr: fx.Proxy(copies[node])
        for node in segment.inputs
        if is_number(node.meta["val"])
    }
    for node in segment.nodes:
        for arg in node.all_input_nodes:
            if arg.op == "get_attr" and arg not in copies:
                constant = program.constant(arg)
                assert constant is not None
                root[str(arg.target)] = constant.to(arg.meta["val"].device)
                copies[arg] = graph.get_attr(str(arg.target))
                copies[arg].meta = {"val": arg.meta["val"]}
        copies[node] = graph.node_copy(node, lambda arg: copies[arg])
        if node.target in VIEWS:
            copies[node].target = aten.reshape.default
        elif node.target in CONTIGUOUS:
            _make_contiguous(copies[node])
        elif promised(node):  # an engine's results lie as it likes
            keep_promise(copies[node], sources)
    graph.output(tuple(copies[node] for node in segment.outputs))
    return fx.GraphModule(root, graph)


def _make_contiguous(node: fx.Node) -> None:
    with node.graph.inserting_before(node):
        for arg in node.all_input_nodes:
            if isinstance(arg.meta["val"], torch.Tensor):
                contiguous = node.graph.call_function(aten.contiguous.default, (arg,))
                contiguous.meta = {"val": arg.meta["val"].contiguous()}
                node.replace_input_with(arg, contiguous)


def pytorch_runner(program: Program, segment: Segment, compiler: str) -> Runner:
    """Run the ops of a segment in PyTorch: as it has them, or compiled by TorchInductor."""
    if compiler == "eager":
        return eager_runner(program, segment)
    module = module_of(program, segment)
    fakes = [node.meta["val"] for node in segment.inputs]
    enter = entrance_of(fakes)
    try:
        call = torch._inductor.standalone_compile(module, fakes, dynamic_shapes="from_graph")
    except Exception as error:
        log.warning("TorchInductor cannot compile a part (%s): it runs in eager PyTorch", error)
        return eager_runner(program, segment)

    def run(values: Sequence[Any]) -> Sequence[Any]:
        return call(*enter(values))  # type: ignore[no-any-return]

    return run


def entrance_of(fakes: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return what lays out the values of a segment as they were traced: strides are built in."""
    layouts = [
        _as_traced(fake)
        if isinstance(fake, torch.Tensor) and fake.layout is torch.strided
        else None
        for fake in fakes
    ]

    def enter(values: Sequence[Any]) -> list[Any]:
        return [
            value if lay is None else lay(value) for value, lay in zip(values, layouts, strict=True)
        ]

    return enter


def _as_traced(fake: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    strides = tuple(fake.stride())
    if all(isinstance(step, int) for step in strides):
        return lambda value: restrided(value, strides)
    layout = layout_of(fake)
    return lambda value: laid_out(value, layout)


def reference_runner(lowered: Lowered, binding: Binding) -> Runner:
    """Run the arithmetic of the built network with PyTorch ops, on the inputs' device."""
    feed, names = feeds_of(binding), binding.output_names

    def run(values: Sequence[Any]) -> Sequence[Any]:
        feeds = {name: value.detach() for name, value in feed(values).items()}
        results = evaluate(lowered.net.definition, feeds)
        return [results[name] for name in names]

    return run
