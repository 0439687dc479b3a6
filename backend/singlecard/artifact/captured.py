"""A model as an artifact needs it: captured by ``torch.export``, compiled, its wiring in the open.

AOTAutograd's own wrapper around a graph is code, and so no part of an artifact. What it would do is
done by wiring, or refused here.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import sympy
import torch
from torch import nn
from torch._functorch._aot_autograd.schemas import OutputType, PlainTensorMeta
from torch._guards import TracingContext, tracing
from torch.export import ExportedProgram
from torch.export.dynamic_shapes import _combine_args
from torch.utils import _pytree as pytree

from singlecard.artifact.dynamic import wanted_lows
from singlecard.artifact.flat import Flat, flatten_program
from singlecard.artifact.signature import Extent, Input, Signature
from singlecard.artifact.structure import structure_to_text
from singlecard.artifact.watching import watched_arguments
from singlecard.axes import Axes
from singlecard.capture.aot import capture
from singlecard.capture.program import Program
from singlecard.capture.scope import Scope, paths_of
from singlecard.capture.spans import Triple, symbols_of
from singlecard.capture.symbols import expression
from singlecard.collection import collection_paused
from singlecard.errors import ArtifactError, CaptureError, SinglecardError
from singlecard.lowering.ranges import UNBOUNDED
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.partition import Segment, divide
from singlecard.report.arguments import Arguments
from singlecard.report.doors import Entrance
from singlecard.report.measure import cpu_convolutions
from singlecard.report.origin import first_line, place_of
from singlecard.report.ranges import to_dims
from singlecard.report.refusals import check_captured, refusal_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.wiring import Wiring, wiring_of
from singlecard.session import Graph, Session


@dataclass(frozen=True)
class Whole:
    """A model as PyTorch runs it, before anything of it was rewritten.

    Attributes:
        program: the model.
        segments: all of it, in the order in which it runs.
        wiring: with places as those of `Captured`.
    """

    program: Program
    segments: tuple[Segment, ...]
    wiring: Wiring


@dataclass(frozen=True)
class Captured:
    """A compiled model.

    Attributes:
        whole: the whole model as PyTorch runs it, where that is asked for.
        program: what was compiled; its segments refer to it.
        segments: in the order in which they run.
        graph: what became of it.
        wiring: with places in the list of ``state``, then the inputs that vary.
        state: tensors of the model's that calls write to, by name, with their values now.
        varying: for each input behind them, its place among the leaves of the arguments.
        passed: results that are an input or state themselves, with the place of that.
        signature: how the model is called.
        changed: arguments whose numbers, or tensors as such, the model replaces.
        timings: seconds by stage.
    """

    whole: Whole | None
    program: Program
    segments: tuple[Segment, ...]
    graph: Graph
    wiring: Wiring
    state: dict[str, torch.Tensor]
    varying: tuple[int, ...]
    passed: tuple[tuple[int, int], ...]
    signature: Signature
    changed: tuple[str, ...]
    timings: dict[str, float]


def capture_model(entrance: Entrance, progress: Progress | None, fallback: bool) -> Captured:
    """Capture, lower and build a model for an artifact; with ``fallback``, keep it whole too.

    Raises:
        OptionError: PyTorch refuses a range.
        ArtifactError: it cannot be captured, or does what an artifact cannot say.
        SinglecardError: see `singlecard.session.Session.compile`.
    """
    started = time.perf_counter()
    call, options = entrance.call.copied(), entrance.options
    module, given, named = _as_module(call.model), call.args, call.kwargs
    names, optional = call.names, call.none
    shapes = to_dims(entrance.axes, call) if entrance.axes else None
    with watched_arguments(module, names) as changed:
        exported = _exported(module, call, entrance.axes, shapes)
    lows = wanted_lows(shapes, given, named)
    flat = flatten_program(exported)
    paths = _paths(exported, names)
    spans = _spans(flat, paths, names, options, lows)
    chosen = dataclasses.replace(options, build=_build(options))
    session = Session(chosen, "reference", True, progress)
    programs: list[Program] = []
    wholes: list[Program] = []
    executables: list[Executable] = []

    def compile_program(program: Program) -> Executable:
        programs.append(program)
        if fallback:
            wholes.append(program.copy())
        program.scope = Scope(True, True, type(call.model).__name__, paths_of([module]))
        executables.append(session.compile(program, spans))
        return executables[0]

    context = TracingContext(flat.mode)
    env: Any = flat.mode.shape_env
    guards = 0 if env is None else len(env.guards)
    try:
        with torch.no_grad(), cpu_convolutions(choose=False), collection_paused(), tracing(context):
            capture(flat.module, flat.examples, compile_program)
    except CaptureError as error:
        raise ArtifactError(
            f"the model cannot be compiled as one graph ({error}): use torch.compile, which leaves "
            "such a graph to PyTorch"
        ) from error
    except SinglecardError:
        raise
    except Exception as error:
        if programs:  # captured, and what followed is our own work
            raise
        raise _uncaptured(error) from error
    _check_guards(env, guards)
    program = programs[0]
    reason = _beyond_wiring(context.fw_metadata, executables[0].wiring)
    if reason:
        raise _unsaid(reason)
    wiring, state, varying = _placed(program, executables[0].wiring, flat)
    whole = _whole(wholes[0], flat) if fallback else None
    passed = _passed(context.fw_metadata, flat, state)
    graph = session.graphs[-1]
    assert graph.partition is not None
    total = time.perf_counter() - started
    timings = {**session.timings, "total": total}
    signature = Signature(
        _inputs(exported, flat, paths, lows),
        _ranges(flat, spans),
        structure_to_text(exported.call_spec.in_spec, "the arguments"),
        structure_to_text(exported.call_spec.out_spec, "the answers"),
        names,
        tuple(name for name in optional if name not in named and name not in names[: len(given)]),
    )
    return Captured(
        whole,
        program,
        graph.partition.segments,
        graph,
        wiring,
        state,
        varying,
        passed,
        signature,
        tuple(changed),
        timings,
    )


def _whole(program: Program, flat: Flat) -> Whole:
    segments = divide(program, lambda node: "PyTorch runs all of it", 1).segments
    wiring, _, _ = _placed(program, wiring_of(program, segments), flat)
    return Whole(program, segments, wiring)


def _build(options: Options) -> Any:
    """An artifact holds what is built: there is no later."""
    return "never" if options.build == "never" else "now"


def _as_module(model: Callable[..., Any]) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    module = nn.Module()
    module.forward = model
    return module


def _exported(module: nn.Module, call: Arguments, axes: Axes, shapes: Any) -> ExportedProgram:
    # torch.export wants one mapping, from the names of parameters where it knows any
    dims = None if shapes is None else _combine_args(module, *shapes)
    try:
        with (
            torch.random.fork_rng(),
            torch.no_grad(),
            cpu_convolutions(choose=False),
            collection_paused(),
        ):
            exported = torch.export.export(
                module, call.args, call.kwargs, dynamic_shapes=dims, strict=False
            )
    except Exception as error:
        raise refusal_of(error, axes, call) or _uncaptured(error) from error
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    paths = [call.path_of(path) for path in _paths(exported, call.names)]
    inputs = zip(paths, map(values.get, exported.graph_signature.user_inputs), strict=False)
    tensors = [(path, value) for path, value in inputs if isinstance(value, torch.Tensor)]
    check_captured(tensors, axes, call)
    return exported


def _uncaptured(error: Exception) -> ArtifactError:
    return ArtifactError(
        f"torch.export could not capture the model: {type(error).__name__} at {place_of(error)}: "
        f"{first_line(error)}. An artifact needs the model as one graph: change that line, or use "
        "torch.compile, which captures around it"
    )


def _paths(exported: ExportedProgram, names: Sequence[str]) -> list[str]:
    """Return for each leaf of the arguments how a person names it."""
    pairs, _ = pytree.tree_flatten_with_path(exported.example_inputs)
    paths = []
    for keys, _ in pairs:
        kind, *rest = [_piece(key) for key in keys]
        if kind == "0" and int(rest[0]) < len(names):
            rest[0] = names[int(rest[0])]
        paths.append(".".join(rest))
    return paths


def _piece(key: Any) -> str:
    for name in ("idx", "key", "name"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _spans(
    flat: Flat,
    paths: Sequence[str],
    names: Sequence[str],
    options: Options,
    lows: Mapping[tuple[int, int], int],
) -> dict[sympy.Symbol, Triple]:
    """Return the ranges of sizes: those of option ``profiles``, and those that begin at 1."""
    placeholders = flat.module.graph.find_nodes(op="placeholder")[len(flat.held) :]
    asked = {span.input for span in options.profiles}
    for node, place in zip(placeholders, flat.varying, strict=True):
        first, dot, rest = paths[place].partition(".")
        by_place = f"{names.index(first)}{dot}{rest}" if first in names else ""
        path = by_place if by_place in asked else paths[place]
        source = "L" + "".join(f"['{piece}']" for piece in path.split("."))
        node.meta["grapharg"] = SimpleNamespace(source=SimpleNamespace(name=source))
    spans = symbols_of(flat.module, options.profiles)
    env: Any = flat.mode.shape_env
    low_of: dict[sympy.Symbol, int] = {}
    for example, place in zip(flat.examples[len(flat.held) :], flat.varying, strict=True):
        for axis, size in enumerate(example.shape if isinstance(example, torch.Tensor) else ()):
            extent = _extent(env, size)
            if isinstance(extent, Extent):
                (symbol,) = env.replace(expression(size)).free_symbols
                low = -(-(lows.get((place, axis), 1) - extent.offset) // extent.factor)
                low_of[symbol] = max(low, low_of.get(symbol, 1))
    for symbol, low in low_of.items():
        bounds = env.bound_sympy(symbol)
        if symbol not in spans and low < int(bounds.lower):
            high, hint = int(min(bounds.upper, UNBOUNDED)), int(env.backed_var_to_val[symbol])
            while high < hint:
                high *= 2
            spans[symbol] = (low, max(low, round(math.sqrt(low * high))), high)
    return spans


def _ranges(flat: Flat, spans: Mapping[sympy.Symbol, Triple]) -> dict[str, tuple[int, int | None]]:
    env: Any = flat.mode.shape_env
    found: dict[str, tuple[int, int | None]] = {}
    for example in flat.examples[len(flat.held) :]:
        sizes = example.shape if isinstance(example, torch.Tensor) else (example,)
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for symbol in env.replace(size.node.expr).free_symbols:
                    bounds = env.bound_sympy(symbol)
                    low = int(bounds.lower)
                    if symbol in spans:
                        low = min(low, spans[symbol][0])
                    high = int(bounds.upper) if bounds.upper.is_Integer else None
                    found[str(symbol)] = (low, high)
    return found


def _inputs(
    exported: ExportedProgram,
    flat: Flat,
    paths: Sequence[str],
    lows: Mapping[tuple[int, int], int],
) -> tuple[Input, ...]:
    examples = dict(zip(flat.varying, flat.examples[len(flat.held) :], strict=True))
    args, kwargs = exported.example_inputs or ((), {})
    leaves = pytree.tree_leaves((args, kwargs))
    env: Any = flat.mode.shape_env
    inputs = []
    for place, (name, leaf) in enumerate(zip(paths, leaves, strict=True)):
        value = examples.get(place)
        if value is None:
            inputs.append(Input(name, "constant", value=leaf))
        elif isinstance(value, torch.SymInt):
            extent = _extent(env, value)
            if isinstance(extent, Extent):
                inputs.append(Input(name, "number", extent=extent))
            else:
                inputs.append(Input(name, "constant", value=leaf))
        else:
            shape = tuple(_extent(env, size) for size in value.shape)
            inputs.append(Input(name, "tensor", value.dtype, shape))
    return tuple(inputs)


def _extent(env: Any, size: Any) -> int | Extent | None:
    """Return a size as `Extent` where it is ``factor * symbol + offset``."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expr = sympy.sympify(env.replace(size.node.expr))
    if expr.is_Integer:
        return int(expr)
    if len(expr.free_symbols) != 1:
        return None
    (symbol,) = expr.free_symbols
    offset = expr.xreplace({symbol: sympy.Integer(0)})
    factor = expr.xreplace({symbol: sympy.Integer(1)}) - offset
    if not (offset.is_Integer and factor.is_Integer and factor > 0):
        return None
    again = factor * symbol + offset
    return (
        Extent(str(symbol), int(factor), int(offset)) if sympy.expand(expr - again) == 0 else None
    )


def _check_guards(env: Any, before: int) -> None:
    """Refuse a graph that lowering has made right for some sizes only, in no range of their own."""
    if env is None:
        return
    for guard in env.guards[before:]:
        expr = env.replace(guard.expr)
        known = env._maybe_evaluate_static(expr)
        about_layout = isinstance(expr, sympy.Ne) and expr.rhs in (0, 1)
        if not about_layout and known not in (True, sympy.true):
            raise ArtifactError(
                f"compiled, the model is right only where {expr} holds of its sizes, which an "
                "artifact cannot check: fix the sizes in it, or use torch.compile"
            )


def _placed(
    program: Program, wiring: Wiring, flat: Flat
) -> tuple[Wiring, dict[str, torch.Tensor], tuple[int, ...]]:
    """Return the wiring with places in an artifact's own list: state, then inputs."""
    names = list(flat.held)
    outer: dict[int, int] = {}  # AOTAutograd takes tensor subclasses apart: its places are others
    for position, node in zip(program.positions, program.placeholders, strict=True):
        desc = node.meta.get("desc")
        if type(desc).__name__ != "PlainAOTInput":
            raise _unsaid("writes to a tensor that shares memory with another, or is a subclass")
        outer[position] = desc.idx  # type: ignore[union-attr]
    kept = [place for place in outer.values() if place < len(names)]
    state = {names[place]: flat.held[names[place]] for place in kept}
    places = {place: index for index, place in enumerate(kept)}
    for index in range(len(flat.varying)):
        places[len(names) + index] = len(kept) + index
    moved = {position: places[place] for position, place in outer.items()}
    return (
        dataclasses.replace(
            wiring,
            positions=tuple(moved[position] for position in wiring.positions),
            frozen=(),
            mutations=tuple(moved[position] for position in wiring.mutations),
        ),
        state,
        flat.varying,
    )


def _passed(
    about: Any, flat: Flat, state: Mapping[str, torch.Tensor]
) -> tuple[tuple[int, int], ...]:
    """Return which results are inputs or state, by their places in an artifact's list."""
    names = list(flat.held)
    states = {name: index for index, name in enumerate(state)}
    passed = []
    for place, item in enumerate(about.output_info):
        if item.output_type is OutputType.is_input and item.base_idx is not None:
            if item.base_idx >= len(names):
                passed.append((place, len(states) + item.base_idx - len(names)))
            elif names[item.base_idx] in states:
                passed.append((place, states[names[item.base_idx]]))
    return tuple(passed)


def _unsaid(reason: str) -> ArtifactError:
    return ArtifactError(f"the model {reason}, which an artifact cannot say: use torch.compile")


def _beyond_wiring(about: Any, wiring: Wiring) -> str:
    """Return what AOTAutograd would do around a call that wiring does not, or ''."""
    if about is None:
        return "was captured by a way of PyTorch's that is not known here"
    if about.tokens:
        return "calls ops for their effects, such as raising where a matrix is singular"
    if about.num_graphsafe_rng_states or about.is_rng_op_functionalized:
        return "keeps a state of random numbers"
    if about.mutated_inp_runtime_indices:
        return "changes the shape or the memory of an input"
    if about.num_intermediate_bases:
        return "returns views whose base is not returned"
    if not all(isinstance(item, PlainTensorMeta) for item in about.subclass_fw_graph_out_meta):
        return "returns a tensor subclass"
    for item, result in zip(about.output_info, wiring.results, strict=False):
        if item.output_type not in _MADE:
            return f"returns what PyTorch calls {item.output_type.name}"
        if item.output_type is OutputType.alias_of_input and result.source is None:
            if about.input_info[item.base_idx].mutates_data:  # the view would be of a copy
                return "returns a view of a tensor that it writes to"
    return ""


#: Results that wiring makes, or makes again.
_MADE = (
    OutputType.non_alias,
    OutputType.unsafe_view_alias,
    OutputType.is_input,
    OutputType.alias_of_input,
)
