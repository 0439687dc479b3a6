"""Running a model twice, in PyTorch and through singlecard, neither run disturbing the other."""

from __future__ import annotations

import itertools
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decompositions
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from singlecard.axes import Axes
from singlecard.backend import compile_in
from singlecard.collection import collection_paused
from singlecard.errors import SinglecardError
from singlecard.partition import Fallback
from singlecard.report.arguments import Arguments
from singlecard.report.ranges import mark_axes
from singlecard.report.refusals import check_captured, inputs_of, refusal_of
from singlecard.session import Graph, Session

_serial = itertools.count(1)


def fresh_call(module: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``module`` and that Dynamo has never seen.

    Dynamo keeps what it compiled by code object, and gives up after a few backends for one.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    code = call.__code__.replace(co_firstlineno=next(_serial))
    return types.FunctionType(code, call.__globals__, "call", None, call.__closure__)


@contextmanager
def compiled_for_now(
    module: Callable[..., Any],
    backend: Callable[[torch.fx.GraphModule, Sequence[Any]], Callable[..., Any]],
) -> Iterator[Callable[..., Any]]:
    """Compile ``module`` for the calls within, and let go of backend and graphs at the end.

    Dynamo keeps both for as long as the process lives: with them what they know of the model.
    """
    held, made = [backend], list[Callable[..., Any]]()

    def ours(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        place = len(made)
        made.append(held[0](graph, examples))
        return lambda *values: made[place](*values)

    try:
        yield torch.compile(fresh_call(module), backend=ours)
    finally:
        held.clear()
        made.clear()


@contextmanager
def cpu_convolutions(choose: bool) -> Iterator[None]:
    """Let PyTorch choose among its CPU convolutions, or not.

    Its choice depends on the batch size, and tracing a dynamic batch would split its range at 16.
    Nothing else may change: what is verified is what runs. PyTorch's LSTM looks at the same switch.
    """
    before = torch._C._get_mkldnn_enabled(), torch._C._get_nnpack_enabled()
    choose_lstm: Callable[..., Any] = decompositions.select_one_layer_lstm_function

    def unswitched(*args: Any) -> Any:
        now = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(before[0])
        try:
            return choose_lstm(*args)
        finally:
            torch._C._set_mkldnn_enabled(now)

    torch._C._set_mkldnn_enabled(choose)
    torch._C._set_nnpack_enabled(choose)
    decompositions.select_one_layer_lstm_function = unswitched
    try:
        yield
    finally:
        decompositions.select_one_layer_lstm_function = choose_lstm
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_nnpack_enabled(before[1])


def run_compiled(session: Session, call: Arguments, axes: Axes) -> Any:
    """Run a model once through a session; return what it answers.

    Args:
        session: its option ``profiles`` has the ranges already.
        call: the model and its arguments, which it may write to.
        axes: what varies among them.

    Raises:
        OptionError: PyTorch refuses a range.
        SinglecardError: what singlecard itself raised while compiling.
    """
    mark_axes(axes, call)
    first = itertools.count()

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        if not next(first):  # inputs of later graphs have other names
            check_captured(inputs_of(graph), axes, call)
        compiled = compile_in(session, graph, examples)

        def run(*values: Any) -> Any:
            with cpu_convolutions(choose=True):
                return compiled(*values)

        return run

    limits = {"recompile_limit": 64, "accumulated_recompile_limit": 4096}
    patched = torch._dynamo.config.patch(limits)
    breaks = counters["graph_break"]
    before = Counter(breaks)
    try:
        with torch.no_grad(), patched, collection_paused(), cpu_convolutions(choose=False):
            with compiled_for_now(call.model, backend) as compiled:
                return compiled(*call.args, **call.kwargs)
    except BackendCompilerFailed as error:  # Dynamo's envelope around an error of ours
        if isinstance(error.inner_exception, SinglecardError):
            raise error.inner_exception from error
        raise
    except ConstraintViolationError as error:
        refusal = refusal_of(error, axes, call)
        if refusal is None:
            raise
        raise refusal from error
    finally:
        fresh = [text for text, times in breaks.items() if times > before[text]]
        if fresh:
            left_out = [Fallback(GRAPH_BREAK, _reason_of(text)) for text in fresh]
            session.graphs.append(Graph(fallback=left_out))


#: Stands in a report for the lines that Dynamo leaves to Python, between or instead of graphs.
GRAPH_BREAK = "graph break"


#: What quantize_dynamic hands its weights over in, and what to do about it.
_PACKED = (
    "It is given a TorchScript object, such as weights that quantize_dynamic packed: quantize the "
    "float model with torchao's quantize_(model, Int8WeightOnlyConfig()) instead."
)


def _reason_of(text: str) -> str:
    """Return Dynamo's own words on a graph break, and the setting that avoids it if any does."""
    lines = [line.strip() for line in text.splitlines()]
    said = [line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation:")]
    said += [line.removeprefix("Hint: ") for line in lines if line.startswith("Hint: Set ")]
    if "(ScriptObject)" in text:
        said.append(_PACKED)
    return f"Dynamo cannot capture this: {' '.join([lines[0].rstrip('.') + '.', *said])}"
