"""Running a model twice, in PyTorch and through singlecard, neither run disturbing the other."""

from __future__ import annotations

import itertools
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.utils import _pytree as pytree

from singlecard.backend import compile_in
from singlecard.collection import collection_paused
from singlecard.errors import OptionError, SinglecardError
from singlecard.partition import Fallback
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


def copied(values: Any) -> Any:
    """Copy every tensor in a nest of values, so that in-place changes stay apart."""
    return pytree.tree_map_only(torch.Tensor, _copy, values)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.detach().clone(memory_format=torch.preserve_format)
    for name in ("_dynamo_dynamic_indices", "_dynamo_dynamic_range"):
        if hasattr(tensor, name):
            setattr(copy, name, getattr(tensor, name))
    return copy


def mark_dynamic(values: Any, shapes: Any, path: str = "args") -> None:
    """Mark axes of tensors as dynamic.

    ``shapes`` mirrors ``values``: None or a mapping of axis to ``(min, max)``, ``torch.export.Dim``
    or None for an open range.

    Raises:
        OptionError: the two do not fit, or a range is empty.
    """
    if shapes is None:
        return
    if isinstance(values, torch.Tensor):
        for axis, span in dict(shapes).items():
            low, high = _bounds(span, f"{path}, axis {axis}")
            torch._dynamo.mark_dynamic(values, axis, min=low, max=high)
        return
    if isinstance(values, Mapping) and isinstance(shapes, Mapping):
        for key, item in shapes.items():
            if key not in values:
                raise OptionError(f"dynamic_shapes names {key!r}, which is not among {path}")
            mark_dynamic(values[key], item, f"{path}[{key!r}]")
        return
    if isinstance(values, Sequence) and isinstance(shapes, Sequence):
        if len(shapes) > len(values):
            raise OptionError(f"dynamic_shapes has {len(shapes)} entries, {path} {len(values)}")
        for index, item in enumerate(shapes):
            mark_dynamic(values[index], item, f"{path}[{index}]")
        return
    raise OptionError(f"dynamic_shapes does not fit {path}: got {shapes!r}")


def _bounds(span: Any, where: str) -> tuple[int | None, int | None]:
    if span is None:
        return None, None
    if hasattr(span, "min") and hasattr(span, "max"):
        low, high = span.min, span.max
    else:
        low, high = span
    if low is not None and high is not None and low > high:
        raise OptionError(f"dynamic_shapes: {where} has min {low} > max {high}")
    return low, high


@contextmanager
def cpu_convolutions(choose: bool) -> Iterator[None]:
    """Let PyTorch choose among its CPU convolutions, or not.

    Its choice depends on the batch size, and tracing a dynamic batch would split its range at 16.
    """
    before = torch._C._get_mkldnn_enabled(), torch._C._get_nnpack_enabled()
    torch._C._set_mkldnn_enabled(choose)
    torch._C._set_nnpack_enabled(choose)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before[0])
        torch._C._set_nnpack_enabled(before[1])


def run_compiled(
    session: Session, module: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Run ``module`` once through a session; return what it answers.

    Raises:
        SinglecardError: what singlecard itself raised while compiling.
    """

    def backend(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
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
            return torch.compile(fresh_call(module), backend=backend)(*args, **kwargs)
    except BackendCompilerFailed as error:  # Dynamo's envelope around an error of ours
        if isinstance(error.inner_exception, SinglecardError):
            raise error.inner_exception from error
        raise
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
