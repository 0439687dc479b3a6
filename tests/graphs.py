"""Programs of small models, and what they compute: for the tests of capture and passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from singlecard.capture.aot import capture, copy_graph
from singlecard.capture.program import Program
from singlecard.partition import Partition, divide
from singlecard.passes import simplify
from singlecard.report.measure import fresh_call


class _Unused:
    """Stands for a compiled Program that nobody runs."""

    def attempt(self, args: Sequence[Any]) -> list[Any] | None:
        return self(args)

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        raise AssertionError("this program is only looked at")


def programs_of(
    module: Callable[..., Any], *args: Any, dynamic: bool | None = None
) -> list[Program]:
    """Capture a model by the way of ``torch.compile``; return its Programs, not simplified."""
    found: list[Program] = []

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        def keep(program: Program) -> _Unused:
            given = [examples[place] for place in program.positions if place < len(examples)]
            program.module.meta["order"] = [
                next((at for at, arg in enumerate(args) if arg is value), None) for value in given
            ]
            found.append(program)
            return _Unused()

        capture(graph, examples, keep)
        return graph.forward

    with torch.no_grad():
        torch.compile(fresh_call(module), backend=backend, dynamic=dynamic)(*args)
    return found


def program_of(module: Callable[..., Any], *args: Any, dynamic: bool | None = None) -> Program:
    programs = programs_of(module, *args, dynamic=dynamic)
    assert len(programs) == 1, f"{len(programs)} graphs instead of one"
    return programs[0]


def targets(program: Program) -> list[str]:
    """Names of the ops in order, such as ``aten.add.Tensor``."""
    return [str(node.target) for node in program.calls()]


def fired(program: Program) -> set[str]:
    """Names of the rules that changed something."""
    return {line.partition(" at ")[0] for line in program.trace}


def _double(value: Any) -> Any:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().double() if is_float else value


@torch.no_grad()
def answers(program: Program, *inputs: Any, double: bool = True) -> list[Any]:
    """Run a Program's graph op by op, in float64 unless it shall keep its types.

    ``inputs`` are in the model's own order. Dynamo's is that of their first use.
    """
    order = program.module.meta.get("order", [])
    if len(order) == len(inputs) and None not in order:
        inputs = tuple(inputs[at] for at in order)
    change = _double if double else lambda value: value
    constants = {name: change(value) for name, value in program.module.named_buffers()}
    graph = copy_graph(program.graph)
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default  # a copy in front may have been dropped
    module = fx.GraphModule(constants, graph)
    return list(fx.Interpreter(module).run(*(change(value) for value in inputs)))


def simplified(module: Callable[..., Any], *args: torch.Tensor) -> Program:
    """Simplify a model's Program, and prove that its answers stay the same in float64."""
    program = program_of(module, *args)
    before = answers(program, *args)
    simplify(program)
    program.check()
    after = answers(program, *args)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    return program


def divided(
    program: Program, refused: Callable[[fx.Node], bool], min_block_size: int = 1
) -> Partition:
    """Divide a Program, with a reason for the ops that ``refused`` picks."""
    return divide(program, lambda node: "not here" if refused(node) else None, min_block_size)
