"""A program compiled by singlecard, called as a user calls it, beside the same in eager PyTorch."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import singlecard
from singlecard.backend import compile_graph
from tests.fuzz.closeness import Rounded, tolerance_of
from tests.fuzz.direct import compiled_directly

Calls = Sequence[Callable[[], tuple[Any, ...]]]


@dataclass(frozen=True)
class Finding:
    """What is wrong with a program's answers.

    Attributes:
        kind: what to count it as: the same fault has the same words.
        detail: what was met, and where.
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Checked:
    """What became of a program.

    Attributes:
        finding: what is wrong, or None.
        evaluations: how often a network's arithmetic was run.
        engines: how many engines were built or found.
        fallback: reasons why ops stay in PyTorch.
    """

    finding: Finding | None
    evaluations: int
    engines: int
    fallback: tuple[str, ...]


class _Lines(logging.Handler):
    """Keeps the warnings that singlecard logs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _watched() -> Iterator[_Lines]:
    """Keep what is logged instead of printing it."""
    lines, logger = _Lines(), logging.getLogger("singlecard")
    propagates = logger.propagate
    logger.addHandler(lines)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(lines)
        logger.propagate = propagates


def seeded(model: type[nn.Module]) -> nn.Module:
    """Make a module whose parameters and statistics are none of the usual zeros and ones."""
    torch.manual_seed(0)
    made = model().eval()
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                value.normal_(std=0.3)
            elif value.is_floating_point() and value.ndim == 1 and name.endswith("weight"):
                value.uniform_(0.5, 1.5)  # gains of norms
    for parameter in made.parameters():
        if parameter.ndim == 1:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        parameter.requires_grad_(False)
    return made


def arguments(calls: Calls, place: int) -> tuple[Any, ...]:
    """Make the arguments of a call: the same each time."""
    torch.manual_seed(1 + place)
    return calls[place]()


@dataclass(frozen=True)
class Answers:
    """What a call gave, and what it left behind.

    Attributes:
        outputs: what was returned.
        inputs: the arguments, as they are after the call.
        state: the buffers, as they are after the call.
        memory: for each output and input, the first tensor among them that it shares memory with.
    """

    outputs: Any
    inputs: tuple[Any, ...]
    state: Mapping[str, Tensor]
    memory: tuple[int, ...]

    @property
    def leaves(self) -> list[tuple[str, Any]]:
        """Everything that is compared, by the words for it. What was written comes behind."""
        outputs = [
            (f"output {place}", x) for place, x in enumerate(pytree.tree_leaves(self.outputs))
        ]
        inputs = [(f"input {place} afterwards", x) for place, x in enumerate(self.inputs)]
        state = [(f"buffer {name} afterwards", x) for name, x in self.state.items()]
        return [*outputs, *inputs, *state]


def answers_of(call: Callable[..., Any], module: nn.Module, inputs: tuple[Any, ...]) -> Answers:
    """Call, and copy what must not change with the next call."""
    outputs = call(*inputs)
    memory = _memory_pattern(outputs, inputs, module)
    kept = (outputs, inputs, dict(module.named_buffers()))
    return Answers(*pytree.tree_map_only(Tensor, _copy, kept), memory)


def _copy(value: Tensor) -> Tensor:
    """Copy a tensor with the memory around it: its strides are part of the answer."""
    memory = value.untyped_storage().clone()
    copied = torch.empty(0, dtype=value.dtype)
    return copied.set_(memory, value.storage_offset(), value.shape, value.stride())


def _memory_pattern(outputs: Any, inputs: Sequence[Any], module: nn.Module) -> tuple[int, ...]:
    seen: dict[int, int] = {}
    pattern = []
    tensors = [*module.parameters(), *module.buffers(), *inputs, *pytree.tree_leaves(outputs)]
    for place, value in enumerate(tensors):
        if not isinstance(value, Tensor) or not value.numel():
            pattern.append(-1)  # nothing of it can be read or written
            continue
        pattern.append(seen.setdefault(value.untyped_storage().data_ptr(), place))
    return tuple(pattern)


def check(
    model: type[nn.Module],
    calls: Calls,
    options: Mapping[str, Any],
    dynamic: bool | None = None,
    again: bool = False,
    direct: bool = False,
) -> None:
    """Assert that a compiled program answers as eager PyTorch does.

    Args:
        model: the class of the module.
        calls: make the arguments of each call.
        options: of the backend; the cache is a folder of its own.
        dynamic: as `torch.compile` takes it.
        again: whether all is repeated by a second compilation, on the first one's cache.
        direct: leave out Dynamo, and make the first call alone, twice.
    """
    found = examine(model, calls, options, dynamic, again, direct).finding
    assert found is None, f"{found.kind}: {found.detail}"


@torch.no_grad()
def examine(
    model: type[nn.Module],
    calls: Calls,
    options: Mapping[str, Any],
    dynamic: bool | None = None,
    again: bool = False,
    direct: bool = False,
) -> Checked:
    """Compile a program, call it, and compare; see `check`. Every rewrite is checked on the way.

    What TorchDynamo and AOTAutograd do otherwise than eager PyTorch without any backend of ours
    (``backend="aot_eager"``) is not counted: it is theirs.
    """
    if direct:
        calls = [calls[0], calls[0]]
    expected = list(_eager(model, calls))
    checks = mock.patch.dict(os.environ, {"SINGLECARD_CHECK": "passes"})
    with checks, _watched() as lines, tempfile.TemporaryDirectory() as folder:
        before = singlecard.counters()
        program = _Program(model, calls, {**options, "cache_dir": folder}, dynamic, direct)
        found = None
        for _ in range(1 + again):
            found = found or program.difference(expected)
        if options.get("build") == "background":
            singlecard.wait_for_builds()
        counted = singlecard.counters() - before
        engines = counted.builds + counted.hits
        found = found or _told(lines.texts, direct)
        if found is None and counted.build_failures:
            words = next((text for text in lines.texts if "TensorRT" in text), "without a word")
            found = Finding(f"refused by TensorRT: {plain(words)[:140]}", words)
    if (
        found is None
        and not counted.evaluations
        and engines
        and options["execution"] == "reference"
    ):
        found = Finding("engines without an evaluation", f"{engines} engines, none evaluated")
    if found is not None:
        theirs = _Program(model, calls, None, dynamic, direct).difference(expected)
        if theirs is not None and _short(theirs.kind) == _short(found.kind):
            found = None
    return Checked(found, counted.evaluations, engines, tuple(dict.fromkeys(lines.texts)))


def _short(kind: str) -> str:
    return kind.partition(" in ")[0]


def _eager(model: type[nn.Module], calls: Calls) -> Iterator[Answers]:
    module = seeded(model)
    for place in range(len(calls)):
        yield answers_of(module, module, arguments(calls, place))


#: Modules that were compiled. Nothing of singlecard's may keep them once they are let go.
COMPILED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@dataclass(frozen=True)
class _Program:
    """A program, and how it is compiled; without options by PyTorch's own stack."""

    model: type[nn.Module]
    calls: Calls
    options: Mapping[str, Any] | None
    dynamic: bool | None
    direct: bool

    def difference(self, expected: Sequence[Answers]) -> Finding | None:
        """Compile and call; return the first thing that differs."""
        module = seeded(self.model)
        COMPILED.add(module)
        precision = (self.options or {}).get("precision", "fp32")
        try:
            compiled = self._compiled(module)
        except Exception as error:
            return Finding(f"raised {_raised(error)}", _trace(error))
        for place, want in enumerate(expected):
            inputs = arguments(self.calls, place)
            try:
                got = answers_of(compiled, module, inputs)
            except Exception as error:
                return Finding(f"raised {_raised(error)}", f"call {place}: {_trace(error)}")
            found = compare(got, want, precision)
            if found is not None and found.kind == "wrong value":
                found = compare(
                    got, want, precision, _tolerances(self.model, self.calls, place, precision)
                )
            if found is not None:
                return Finding(found.kind, f"call {place}: {found.detail}")
        return None

    def _compiled(self, module: nn.Module) -> Callable[..., Any]:
        options = self.options

        def backend(graph: Any, examples: Any) -> Any:
            return compile_graph(graph, examples, options=options)

        if self.direct:
            return compiled_directly(module, options, arguments(self.calls, 0))
        torch._dynamo.reset()
        chosen = "aot_eager" if options is None else backend
        return torch.compile(module, backend=chosen, dynamic=self.dynamic)  # type: ignore[arg-type]


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error)[-12:])


def _tolerances(model: type[nn.Module], calls: Calls, place: int, precision: str) -> list[Any]:
    """Return, for each leaf of a call's answers, how far rounding takes it; see `closeness`."""
    exact = list(_eager(model, calls))[place]
    varied = []
    for seed in range(6):
        module = seeded(model)
        with Rounded(precision, seed):
            for before in range(place + 1):
                answers = answers_of(module, module, arguments(calls, before))
        varied.append(answers)
    return [
        tolerance_of(leaf, [other.leaves[at][1] for other in varied])
        for at, (_, leaf) in enumerate(exact.leaves)
    ]


#: Without a look at how far rounding takes an answer: relative to an output's largest value.
_CLOSE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.6e-2}


def compare(
    got: Answers, want: Answers, precision: str, tolerances: Sequence[Any] | None = None
) -> Finding | None:
    """Compare the answers of a call: structure, types, shapes, strides, memory, values.

    Args:
        got: what the compiled module gave.
        want: what eager PyTorch gave.
        precision: what the compiled module computes with.
        tolerances: for each leaf, how far it may be off beyond what is always close enough.
    """
    if pytree.tree_structure(got.outputs) != pytree.tree_structure(want.outputs):
        return Finding("another structure", f"{got.outputs} instead of {want.outputs}")
    for at, ((name, a), (_, b)) in enumerate(zip(got.leaves, want.leaves, strict=True)):
        if type(a) is not type(b):
            return Finding("another class", f"{name}: {type(a)} instead of {type(b)}")
        if not isinstance(b, Tensor):
            if a != b and a is not b:
                return Finding("another number", f"{name}: {a!r} instead of {b!r}")
            continue
        if a.dtype is not b.dtype:
            return Finding("another type", f"{name}: {a.dtype} instead of {b.dtype}")
        if a.shape != b.shape:
            return Finding("another shape", f"{name}: {[*a.shape]} instead of {[*b.shape]}")
        if name.startswith("output") and not _lies_alike(a, b):
            return Finding("other strides", f"{name}: {a.stride()} instead of {b.stride()}")
        allowed = tolerances[at] if tolerances is not None else 0.0
        if text := _far(a, b, _CLOSE[precision], allowed):
            return Finding("wrong value", f"{name}: {text}")
    if got.memory != want.memory:
        return Finding("other sharing of memory", f"{got.memory} instead of {want.memory}")
    return None


def _lies_alike(got: Tensor, want: Tensor) -> bool:
    """Tell whether strides are those that `torch.compile` promises.

    An output without gaps has eager's strides. One with gaps, such as a column of a matrix, may
    come without them, in the same order of axes: TorchInductor promises no more, for what lies
    between can only be seen by reading past the output. Where several places of eager's output are
    one in memory, it promises nothing.
    """
    axes = [axis for axis, size in enumerate(want.shape) if size > 1]
    ours, theirs = ([value.stride(axis) for axis in axes] for value in (got, want))
    reach = 1
    for stride, size in sorted((want.stride(axis), want.shape[axis]) for axis in axes):
        if stride < reach:
            return True  # places that are one in memory
        reach += stride * (size - 1)
    has_gaps = reach != want.numel()
    return not want.numel() or (_order(ours) == _order(theirs) if has_gaps else ours == theirs)


def _order(strides: list[int]) -> list[int]:
    return sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis))


def _far(got: Tensor, want: Tensor, close: float, allowed: Any) -> str | None:
    if allowed is None or not want.numel():
        return None
    if not want.is_floating_point():
        wrong = got != want
    else:
        x, y = got.double(), want.double()
        finite = torch.isfinite(y)
        largest = float(y[finite].abs().max()) if bool(finite.any()) else 0.0
        # Types of the answers themselves round too: half a unit in the last place.
        own = torch.finfo(want.dtype).eps
        limit = max(close, own) * largest + allowed + 1e-7
        same = torch.where(finite, (x - y).abs() <= limit, (x == y) | (x.isnan() & y.isnan()))
        wrong = ~same
    if not bool(wrong.any()):
        return None
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{int(wrong.sum())} of {wrong.numel()} elements differ, first at {[*first]}: "
        f"{got[first].item()} instead of {want[first].item()}"
    )


def _raised(error: BaseException) -> str:
    """Return an error's class, the place that it was raised at, and its words."""
    while error.__cause__ is not None:
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/singlecard/" in frame.filename]
    frame = (ours or frames)[-1]
    words = plain(str(error).splitlines()[0] if str(error) else "")
    return f"{type(error).__name__} in {Path(frame.filename).name}:{frame.name}: {words[:100]}"


def plain(text: str) -> str:
    """Take numbers and names of values out of a text, so that two of a kind read alike."""
    text = re.sub(r"\b(s|u|zuf|in|v|arg)\d+(_\d+)?\b", r"\1N", text)
    return re.sub(r"\d+", "N", text)


#: Log lines that stand for a fault: singlecard's own, and refusals that no declaration foresaw.
_FAULTS = re.compile(
    r"report this|TensorRT (did not|refuses|cannot|refused)|could not capture", re.I
)


def _told(lines: Sequence[str], direct: bool) -> Finding | None:
    for line in lines:
        # Without Dynamo nothing breaks a graph at sizes that follow from values.
        if _FAULTS.search(line) and not (direct and "could not capture" in line):
            return Finding(f"logged: {plain(line)[:140]}", line)
    return None
