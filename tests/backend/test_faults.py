"""Faults put in on purpose: whatever raises in singlecard, the caller gets PyTorch's answer.

For each stage of the way, at the first compilation and at a later one, or at a first and a later
call. Rules are taken from the lists that run them, converters from their table: new ones are tried
without anybody thinking of it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import singlecard
from singlecard import background, passes
from singlecard.backend import compile_in
from singlecard.errors import CaptureError, RuntimeFailure
from singlecard.faults import HalfWritten
from singlecard.lowering import lower as lowering
from singlecard.lowering.table import table
from singlecard.options import Options
from singlecard.runtime.executable import Executable
from singlecard.session import Session

ERRORS = (RuntimeError, KeyError, MemoryError, RecursionError)

X = torch.linspace(-1, 1, 32).reshape(4, 8)


def model(x: Tensor, weight: Tensor, bias: Tensor, cache: Tensor) -> list[Tensor]:
    y = F.linear(x, weight, bias).relu()
    cache.add_(y)
    return [torch.exp(y) * cache]


class Compiled:
    """A graph as Dynamo hands it over, compiled without Dynamo, and the same in eager PyTorch."""

    def __init__(self, folder: Path, build: bool = False, **options: Any) -> None:
        self.weight = nn.Parameter(torch.eye(8) * 2, requires_grad=False)
        self.bias = nn.Parameter(torch.ones(8), requires_grad=False)
        self.cache = torch.ones(4, 8)
        chosen = {"min_block_size": 1, "targets": "sm89", "cache_dir": folder, **options}
        self.session = Session(Options.parse(chosen), "reference", build)
        self.module, self.remembers = fx.symbolic_trace(model), build
        self.compile()

    def compile(self) -> None:
        values = [X, self.weight, self.bias, self.cache.clone()]
        with torch.no_grad():
            self._call = compile_in(self.session, self.module, values, remembers=self.remembers)

    def check(self) -> bool:
        """Call it, compare answers and what was written, and tell whether a network was run."""
        expected = self.cache.clone()
        before = singlecard.counters()
        with torch.no_grad():
            got = self._call(X, self.weight, self.bias, self.cache)
            want = model(X, self.weight, self.bias, expected)
        torch.testing.assert_close(list(got), want)
        torch.testing.assert_close(self.cache, expected)
        return (singlecard.counters() - before).evaluations > 0

    def change(self) -> None:
        """Write to a weight: the next call compiles the graph again."""
        self.weight.data.mul_(1)
        with torch.no_grad():
            self.weight.mul_(1.5)


def raising(error: type[BaseException]) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("a fault put in on purpose")

    return fail


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith("singlecard")
    ]


Patch = Callable[[pytest.MonkeyPatch, type[BaseException]], None]


def at(name: str) -> Patch:
    """Let a function raise where it is called from."""
    return lambda patch, error: patch.setattr(f"singlecard.{name}", raising(error))


def one_pass(
    place: int, broken: Callable[[passes.Pass, type[BaseException]], passes.Pass]
) -> Patch:
    """Put another pass in the place of one."""

    def put(patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
        all_passes = list(passes.PASSES)
        all_passes[place] = broken(all_passes[place], error)
        patch.setattr(passes, "PASSES", tuple(all_passes))

    return put


def whole_pass(place: int) -> Patch:
    return one_pass(place, lambda item, error: dataclasses.replace(item, run=raising(error)))


def rule(place: int, number: int) -> Patch:
    def broken(item: passes.Pass, error: type[BaseException]) -> passes.Pass:
        rules = list(item.rules)
        rules[number] = functools.wraps(rules[number])(raising(error))
        return passes.Pass.of_rules(item.name, rules)

    return one_pass(place, broken)


def converters(patch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    broken = {
        target: dataclasses.replace(declaration, lower=raising(error))
        for target, declaration in table().items()
    }
    patch.setattr(lowering, "table", lambda: broken)


#: What is done once for a graph and its weights. Each is looked up where it is called.
COMPILING: dict[str, Patch] = {
    name: at(name)
    for name in (
        "backend.symbols_of",
        "capture.aot.aot_module_simplified",
        "capture.aot.close_opaque",
        "capture.aot.describe_results",
        "capture.aot.freeze_numbers",
        "capture.aot.inline_regions",
        "capture.aot.keep_whole",
        "capture.aot.promise_layouts",
        "capture.aot.read_owners",
        "capture.aot.read_sizes_from_inputs",
        "capture.program.Program.check",
        "capture.variants.Statistics",
        "choosing.lower_precision",
        "choosing.simplify",
        "choosing.refusal",
        "lowering.lower.Sizes",
        "lowering.lower.Net.mark_output",
        "runtime.executable.wiring_of",
        "session.Frozen.of",
        "session.binding_of",
        "session.divide",
        "session.lower",
        "session.reference_runner",
    )
} | {"converters": converters}
COMPILING |= {
    f"pass {place} {item.name}": whole_pass(place) for place, item in enumerate(passes.PASSES)
}
COMPILING |= {
    f"rule {item.name}.{function.__name__}": rule(place, number)  # type: ignore[attr-defined]
    for place, item in enumerate(passes.PASSES)
    for number, function in enumerate(item.rules)
}

#: Of these, what is only done for the first set of weights.
ONCE = (
    "backend.symbols_of",
    "capture.aot.aot_module_simplified",
    "capture.aot.freeze_numbers",
    "capture.aot.inline_regions",
    "capture.aot.keep_whole",
    "choosing.lower_precision",  # with the precision of the model it is not called
)

#: What is done in each call.
CALLING: dict[str, Patch] = {
    name: at(name)
    for name in (
        "runtime.executable.Executable.__call__",
        "runtime.executable.Executable._make_results",
        "runtime.executable.Executable._write_back",
        "runtime.executable.Executable.attempt",
        "runtime.frozen.Frozen.are_in",
        "runtime.frozen.Frozen.are_unchanged",
        "runtime.runners.evaluate",
    )
}

#: What is done where engines are built and kept.
BUILDING: dict[str, Patch] = {
    name: at(name)
    for name in (
        "engine.build.build_plan",
        "engine.build.view_network",
        "engine.cache.Cache.look",
        "engine.cache.Shelf.lock",
        "engine.cache.Shelf.store",
        "engine.shelf.note_use",
        "recalled.Guards",
        "recalled.fingerprint",
        "recalled.recipe_digest",
        "session.recall",
    )
}

#: Of these, what is only there to save time: the engine is built and used all the same.
SAVING = (
    "recalled.Guards",
    "recalled.fingerprint",
    "recalled.recipe_digest",
)


def errors_of(stages: Iterable[str]) -> list[Any]:
    """One kind of error for each stage, by turns."""
    kinds = itertools.cycle(ERRORS)
    return [
        pytest.param(stage, error, id=f"{stage}-{error.__name__}")
        for stage, error in zip(stages, kinds, strict=False)
    ]


def goes_on(compiled: Compiled) -> None:
    """Without the fault the same graph runs on its network: nothing is locked or broken."""
    compiled.compile()
    assert compiled.check()


@pytest.mark.parametrize(("stage", "error"), errors_of(COMPILING))
def test_while_compiling(
    stage: str, error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of ours would stop a model that runs in eager PyTorch."""
    precision = "fp16" if stage == "choosing.lower_precision" else "fp32"
    with pytest.MonkeyPatch.context() as patch:
        COMPILING[stage](patch, error)
        compiled = Compiled(tmp_path, precision=precision)
        assert not compiled.check() and not compiled.check()
    told = set(warnings_in(caplog))
    assert told and all("PyTorch" in line for line in told), told
    assert len(warnings_in(caplog)) == len(told), "a reason was told twice"
    if stage != "capture.aot.aot_module_simplified":
        assert not any("could not capture" in line for line in told), told
    assert any(graph.fallback for graph in compiled.session.graphs), "the reason is not kept"
    if precision == "fp32":
        goes_on(compiled)


@pytest.mark.parametrize(
    ("stage", "error"), errors_of(stage for stage in COMPILING if stage not in ONCE)
)
def test_while_compiling_again(
    stage: str, error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights that are loaded while a server runs lead to another compilation, in a call."""
    compiled = Compiled(tmp_path)
    assert compiled.check()
    with pytest.MonkeyPatch.context() as patch:
        COMPILING[stage](patch, error)
        compiled.change()
        assert not compiled.check() and not compiled.check()
    told = warnings_in(caplog)
    assert told and len(set(told)) == len(told), told
    compiled.change()
    assert compiled.check(), "other weights are compiled again"


@pytest.mark.parametrize("first", [True, False], ids=["first call", "later call"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", CALLING)
def test_in_a_call(
    stage: str,
    error: type[Exception],
    first: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One request that fails must not be another's, and inputs must be as they were."""
    compiled = Compiled(tmp_path)
    if not first:
        assert compiled.check()
    before = singlecard.counters()
    with pytest.MonkeyPatch.context() as patch:
        CALLING[stage](patch, error)
        for _ in range(2):
            compiled.check()
    assert (singlecard.counters() - before).fallback_calls == 2
    (line,) = warnings_in(caplog)
    assert "runs in PyTorch" in line
    (graph,) = compiled.session.graphs
    assert graph.fallback and not graph.lowered_ops, "the report must not count what did not run"
    assert compiled.check()


@pytest.mark.parametrize(("stage", "error"), errors_of(BUILDING))
def test_around_an_engine(
    stage: str, error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is kept for the next process must not cost this one its engine."""
    with pytest.MonkeyPatch.context() as patch:
        BUILDING[stage](patch, error)
        compiled = Compiled(tmp_path, build=True)
        ran = compiled.check()
        assert compiled.check() == ran
    assert ran == (stage in SAVING)
    told = warnings_in(caplog)
    assert told and len(set(told)) == len(told), told
    assert not any("could not capture" in line for line in told), told
    goes_on(compiled)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stage", ["recalled.recipe_to_plain", "recalled.remember"])
def test_a_recipe_that_cannot_be_kept(
    stage: str, error: type[Exception], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk would cost the engine that was just built, and not the next start alone."""
    options = Options.parse({"targets": "sm89", "cache_dir": tmp_path})
    layer = nn.Linear(8, 4).eval()

    def backend(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        session = Session(options, "reference", True)
        return compile_in(session, graph, examples, remembers=True)

    before = singlecard.counters()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        at(stage)(patch, error)
        torch.testing.assert_close(torch.compile(layer, backend=backend)(X), layer(X))
    counted = singlecard.counters() - before
    assert (counted.builds, counted.evaluations) == (1, 1)
    (line,) = warnings_in(caplog)
    assert "the next process captures this graph again" in line


@pytest.mark.parametrize("error", [*ERRORS, KeyboardInterrupt])
def test_behind_running_calls(
    error: type[BaseException], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Work behind answers that ends badly must leave the answers, and the thread."""
    stage = "session.divide"
    with pytest.MonkeyPatch.context() as patch:
        at(stage)(patch, error)
        compiled = Behind(tmp_path)
        compiled.check()
        assert singlecard.wait_for_builds(60)
        compiled.check()
    if issubclass(error, Exception):
        (line,) = warnings_in(caplog)
        assert "stays in PyTorch" in line
    other = Behind(tmp_path)
    other.check()
    assert singlecard.wait_for_builds(60)
    other.check()


class Behind(Compiled):
    """Compiled behind running calls, and answered by PyTorch: there is no card."""

    def compile(self) -> None:
        options = {"build": "background", "min_block_size": 1, "targets": "sm89"}
        self.session = Session(Options.parse(options), "eager", False)
        super().compile()


def test_no_more_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A container that has used up its threads still answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background, "_submit", raising(RuntimeError))
        compiled = Behind(tmp_path)
        for _ in range(2):
            compiled.check()
    (line,) = warnings_in(caplog)
    assert "in the background" in line


STRICT = {
    "compiling": "session.divide",
    "a converter": "session.lower",
    "capture": "capture.aot.aot_module_simplified",
    "a call": "runtime.executable.Executable._make_results",
    "a network": "runtime.runners.evaluate",
}


@pytest.mark.parametrize("stage", STRICT.values(), ids=STRICT.keys())
def test_strict_raises(stage: str, tmp_path: Path) -> None:
    """Who asks for engines alone must hear of everything that stands in the way."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="on purpose"):
        at(stage)(patch, RuntimeError)
        Compiled(tmp_path, strict=True).check()


INTERRUPTED = {
    "compiling": "session.divide",
    "a converter": "lowering.lower._lower_node",
    "building": "engine.build.build_plan",
    "storing": "engine.cache.Shelf.store",
    "a call": "runtime.executable.Executable._make_results",
    "a network": "runtime.runners.evaluate",
}


@pytest.mark.parametrize("stage", INTERRUPTED.values(), ids=INTERRUPTED.keys())
def test_interrupts_pass_and_lock_nothing(stage: str, tmp_path: Path) -> None:
    """Ctrl-C in a notebook, and the next cell waits for ever."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at(stage)(patch, KeyboardInterrupt)
        Compiled(tmp_path, build=True).check()
    compiled = Compiled(tmp_path, build=True)
    assert compiled.check()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        compiled.change()
        at(stage)(patch, KeyboardInterrupt)
        compiled.check()
    assert compiled.check()


def test_a_full_card_is_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Memory is not a fault to report, but one to free."""
    compiled = Compiled(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        at("runtime.runners.evaluate")(patch, torch.OutOfMemoryError)
        compiled.check()
    (line,) = warnings_in(caplog)
    assert "memory" in line and "report" not in line


def test_errors_of_pytorch_itself_are_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An index out of range in the user's data is no fault of an engine."""
    compiled = Compiled(tmp_path)
    with torch.no_grad(), pytest.raises(RuntimeError, match="size"):
        compiled._call(X, compiled.weight, compiled.bias, torch.ones(3, 5))
    assert not warnings_in(caplog)


class Unwritable(torch.Tensor):
    """Takes no copy."""

    def copy_(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a fault put in on purpose")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_inputs_that_are_half_written_are_said_to_be(order: Sequence[int]) -> None:
    """Calling again would count a step twice: that is the one thing nobody can answer."""
    good, bad = torch.zeros(2), torch.zeros(2).as_subclass(Unwritable)
    given = [(good, bad)[place] for place in order]
    executable: Any = Executable.__new__(Executable)
    executable.wiring = type("Wiring", (), {"mutations": (0, 1)})
    with pytest.raises(RuntimeError) as caught:
        executable._write_back(given, [torch.ones(2), torch.ones(2)])
    assert isinstance(caught.value, HalfWritten) == (order == (0, 1))
    assert bool(good.any()) == (order == (0, 1))


def test_nothing_is_written_where_a_value_does_not_fit() -> None:
    """PyTorch answers from inputs as they were, or counts a step twice."""
    first, second = torch.zeros(2), torch.zeros(2)
    executable: Any = Executable.__new__(Executable)
    executable.wiring = type("Wiring", (), {"mutations": (0, 1)})
    with pytest.raises(RuntimeFailure, match="please report"):
        executable._write_back([first, second], [torch.ones(2), torch.ones(3)])
    assert not first.any() and not second.any()


def test_what_pytorch_cannot_capture_is_a_capture_error(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CaptureError, match="PyTorch could"):
        at("capture.aot.aot_module_simplified")(patch, ValueError)
        Compiled(tmp_path, strict=True)
