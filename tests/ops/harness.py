"""One call of an op through the real pipeline: captured, lowered, evaluated, compared with eager.

Dynamo is left out: it takes most of the time and changes nothing for a graph of one call. All the
rest is the product's own: AOTAutograd with our decompositions, passes, partition, lowering, and the
reference evaluator. Engines are built only where asked for.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx
from torch._subclasses import fake_tensor
from torch.fx.experimental import symbolic_shapes
from torch.utils import _pytree as pytree

from singlecard.capture.aot import capture
from singlecard.errors import CaptureError
from singlecard.network.building import build_plan
from singlecard.observe import counters
from singlecard.options import Options
from singlecard.session import Session
from tests.ops.tolerances import difference

#: What is raised where a graph cannot be captured: the call stays in eager.
NOT_CAPTURED = (
    CaptureError,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.DataDependentOutputException,
    fake_tensor.UnsupportedOperatorException,
    symbolic_shapes.GuardOnDataDependentSymNode,
)

LOWERED, EAGER, WRONG, RAISED = "lowered", "eager", "wrong", "raised"

#: A state that does not count: there is nothing to compare with.
RANDOM = "random"


@dataclass(frozen=True)
class Outcome:
    """What became of one call: its state, and a sentence why unless it was lowered."""

    state: str
    reason: str = ""


def graph_of_call(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return a graph of one call, the tensors it takes, and where its outputs' structure is kept.

    Attention is called by name, as Dynamo's graphs call it, so that capture finds it.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    structure: list[Any] = []
    graph = fx.Graph()
    inputs = [graph.placeholder(f"input_{place}") for place in places]

    def flatten(value: Any) -> list[Any]:
        flat, out_spec = pytree.tree_flatten(value)
        structure[:] = [out_spec]
        return flat

    if function is torch.nn.functional.scaled_dot_product_attention:
        filled = list(leaves)
        for place, node in zip(places, inputs, strict=True):
            filled[place] = node
        new_args, new_kwargs = pytree.tree_unflatten(filled, spec)
        result = graph.call_function(function, tuple(new_args), new_kwargs)
        result.meta["example_value"] = _fake_answer(function, args, kwargs)
        graph.output((result,))
        structure[:] = [pytree.tree_structure(0)]
    else:

        def op(*tensors: torch.Tensor) -> list[Any]:
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            new_args, new_kwargs = pytree.tree_unflatten(filled, spec)
            return flatten(function(*new_args, **new_kwargs))

        graph.output(graph.call_function(op, tuple(inputs)))
    return fx.GraphModule({}, graph), [leaves[place] for place in places], structure


def _fake_answer(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what Dynamo notes of a call: its answer, without numbers."""
    with fake_tensor.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_args, fake_kwargs = pytree.tree_map_only(
            torch.Tensor, mode.from_tensor, (args, dict(kwargs))
        )
        return function(*fake_args, **fake_kwargs)


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors with the memory around them, so that views stay views; weights are constants."""
    return [
        tensor if isinstance(tensor, torch.nn.Parameter) else _copy(tensor.detach())
        for tensor in tensors
    ]


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return tensor.clone()
    copy = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    memory = tensor.untyped_storage().clone()
    return copy.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


@torch.no_grad()
def run_call(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    build: bool = False,
    like: Callable[..., Any] | None = None,
) -> Outcome:
    """Lower one call and compare its answers, and what it writes to its inputs, with eager's.

    Args:
        function: anything that takes tensors.
        args: its arguments; they are copied, and not changed.
        kwargs: its keyword arguments.
        build: whether each network is also given to the real builder.
        like: what eager's answers come from where ``function`` has no kernel on a CPU.
    """
    module, tensors, structure = graph_of_call(function, args, kwargs or {})
    eager, _, eager_structure = graph_of_call(like or function, args, kwargs or {})
    eager_inputs, inputs = copies(tensors), copies(tensors)
    try:
        expected = eager(*eager_inputs)
    except Exception as error:
        return Outcome(EAGER, f"eager PyTorch raises: {first_line(error)}")
    if _is_random(eager, tensors, expected):
        return Outcome(RANDOM, "eager PyTorch answers differently each time")
    session = Session(Options(min_block_size=1), "reference", build=False)
    before = counters().evaluations
    try:
        compiled = capture(module, copies(tensors), _compiler(session, build))
        outputs = compiled(*inputs)
    except NOT_CAPTURED as error:
        return Outcome(EAGER, f"no graph can be captured: {first_line(error)}")
    except Exception as error:
        return Outcome(RAISED, f"{type(error).__name__}: {first_line(error)}")
    if structure != eager_structure:
        return Outcome(WRONG, "the outputs have another structure")
    answers = [*outputs, *inputs]
    wrong = difference(answers, [*expected, *eager_inputs])
    if wrong and difference(answers, _in_float32(eager, tensors)):
        return Outcome(WRONG, wrong)
    fallback = [item for graph in session.graphs for item in graph.fallback]
    for item in fallback:
        if "please report this" in item.reason:  # a defect of a converter, caught by the session
            return Outcome(RAISED, item.reason)
    if fallback:
        return Outcome(EAGER, fallback[0].reason)
    if any(graph.lowered_ops for graph in session.graphs) and counters().evaluations == before:
        return Outcome(RAISED, "PyTorch answered for the network")
    return Outcome(LOWERED)


def _is_random(
    module: Callable[..., Any], tensors: Sequence[torch.Tensor], expected: Sequence[Any]
) -> bool:
    """Tell whether a call draws random numbers; the database seeds its random ops in secret."""
    with mock.patch("torch.manual_seed"), torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        return difference(module(*copies(tensors)), expected) is not None


def _in_float32(module: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> list[Any]:
    """Return the answers of a call in half precision, as float32 arithmetic gives them.

    PyTorch's own decompositions compute many of these in float32, where eager's kernel overflows.
    """

    def convert(value: Any, source: torch.dtype, target: torch.dtype) -> Any:
        is_source = isinstance(value, torch.Tensor) and value.dtype == source
        return value.to(target) if is_source else value

    wide = [convert(value, torch.float16, torch.float32) for value in copies(tensors)]
    try:
        answers = [*module(*wide), *wide]
    except Exception:  # the call holds a type of its own
        return []
    return [convert(value, torch.float32, torch.float16) for value in answers]


def _compiler(session: Session, build: bool) -> Callable[[Any], Any]:
    """Return the session's compiler, or one that also hands every network to the builder."""
    if not build:
        return session.compile
    import singlecard.session as sessions

    original = sessions.lower

    def lower_and_build(program: Any, segment: Any, spans: Any) -> Any:
        lowered = original(program, segment, spans)
        with tempfile.TemporaryDirectory() as folder, Path(folder, "plan").open("wb") as file:
            build_plan(lowered.net, lowered.profiles, session.settings, file)
        return lowered

    def compile_program(program: Any) -> Any:
        sessions.lower = lower_and_build
        try:
            return session.compile(program)
        finally:
            sessions.lower = original

    return compile_program


def first_line(error: BaseException) -> str:
    """Return an error's first line, without addresses that change from run to run."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else type(error).__name__
    return re.sub(r"0x[0-9a-f]+", "0x...", line)
