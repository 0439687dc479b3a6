"""The backend that ``torch.compile(model, backend="singlecard")`` calls."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import TorchDynamoException

from singlecard.background import Pending
from singlecard.capture.aot import capture
from singlecard.capture.program import Program
from singlecard.capture.scope import scope_of_graph
from singlecard.capture.spans import symbols_of
from singlecard.capture.variants import Executable
from singlecard.collection import collection_paused
from singlecard.errors import OptionError, RuntimeFailure, SinglecardError
from singlecard.faults import BAD_INPUT, Faults, reason_of
from singlecard.observe import events
from singlecard.observe.topics import topic
from singlecard.options import Options
from singlecard.recalled import Recall
from singlecard.registration import allow_again
from singlecard.runtime.device import card_refusal, target_of
from singlecard.runtime.torch_tensorrt import load_torch_tensorrt
from singlecard.session import Graph, Session
from singlecard.unmatched import tell_unmatched, unmatched_modules
from singlecard.warning import warn_once

log = topic("capture")


def compile_graph(
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    options: Mapping[str, Any] | Options | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo's: the entry point ``torch_dynamo_backends: singlecard``.

    Args:
        module: Dynamo's graph.
        examples: the tensors and sizes it was traced with.
        options: see `singlecard.Options`.
        mode: as `torch.compile` hands it over; there is none.

    Raises:
        OptionError: an option is not valid.
    """
    if mode not in (None, "default"):
        raise OptionError(
            f"mode={mode!r} is of TorchInductor, and singlecard has none: say what you want with "
            "options. With fallback='inductor', Inductor takes its own settings: "
            "torch._inductor.config.patch(torch._inductor.list_mode_options(...)) around the call"
        )
    chosen = Options.parse(options)
    if _needs_gradients(examples):
        warn_once(
            "singlecard compiles inference only: a graph that needs gradients runs in eager "
            "PyTorch. Call the model inside torch.no_grad() or torch.inference_mode()"
        )
        return module.forward
    try:
        return _compile(module, examples, chosen)
    except (TorchDynamoException, SinglecardError):
        raise
    except Exception as error:
        if chosen.strict:
            raise
        log.warning("%s: this graph stays in PyTorch", reason_of(error, "finding a card"))
        return in_pytorch(module, examples, chosen)


def _compile(
    module: fx.GraphModule, examples: Sequence[Any], chosen: Options
) -> Callable[..., Any]:
    execution = _execution(chosen, examples)
    asked = chosen.targets is not None or chosen.execution == "eager"
    build = execution == "engine" or asked
    if execution == "eager" and not build:
        return in_pytorch(module, examples, chosen)
    if execution == "engine" and chosen.targets is None:
        device = next(x.device for x in examples if isinstance(x, torch.Tensor) and x.is_cuda)
        chosen = dataclasses.replace(chosen, targets=(target_of(device),))
    if execution == "engine" and chosen.runtime == "torch_tensorrt":
        load_torch_tensorrt()
    session = Session(chosen, execution, build, reports=False)
    return compile_in(session, module, examples, remembers=build)


def compile_in(
    session: Session,
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    remembers: bool = False,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo's under a session; whatever fails leaves it to PyTorch.

    Args:
        session: keeps what was compiled.
        module: the graph.
        examples: the tensors and sizes it was traced with.
        remembers: look for what became of the same graph before, and keep what becomes of it now.

    Raises:
        SinglecardError: input is not valid; with ``strict=True``, whatever stands in the way.
    """
    options = session.options

    def leave(error: Exception, values: Sequence[Any]) -> Callable[..., Any]:
        """Return PyTorch in place of what raised, unless the caller must know."""
        if options.strict or isinstance(error, BAD_INPUT):
            raise error
        reason = reason_of(error, "compiling a graph")
        log.warning("%s: this graph stays in PyTorch", reason)
        session.graphs.append(Graph.left_out(module, reason))
        return in_pytorch(module, values, options)

    made: list[Graph] = []

    def keep(reason: str) -> None:
        for graph in made:
            graph.fallback[:] = Graph.left_out(module, reason).fallback
            graph.lowered_ops = 0

    answer = None if options.strict else Faults("a compiled graph", "it", keep=keep).answer

    scope = scope_of_graph()
    if not scope.whole:
        tell_unmatched(unmatched_modules(options, scope).values(), options)
    profiles = [
        dataclasses.replace(span, input=scope.path_of(span.input)) for span in options.profiles
    ]
    with collection_paused(), _capture_timed(session):
        try:
            spans = symbols_of(module, profiles)
        except TorchDynamoException:
            raise
        except Exception as error:
            return leave(error, examples)
        recall = _recall(session, module, examples, spans) if remembers else None

        behind = options.build == "background" and session.execution != "reference"

        def compile_program(program: Program) -> Executable:
            program.scope = scope
            executable = session.compile(program, spans)
            for graph in session.graphs[-1:]:
                if session.reports:
                    made.append(graph)
                if recall is not None:
                    recall.keep(graph, executable)
                for engine in graph.engines if behind else ():
                    if engine.built:
                        events.record_background_build(engine.digest)
            if not session.reports:
                session.graphs.clear()
            return executable

        at_once = session.execution == "eager"
        later = functools.partial(
            Pending, compile_program=compile_program, at_once=at_once, strict=options.strict
        )

        def captured(values: Sequence[Any]) -> Callable[..., Any]:
            try:
                return capture(module, values, later if behind else compile_program, answer)
            except TorchDynamoException:
                raise  # Dynamo's own way to start over
            except Exception as error:
                return leave(error, values)

        found = None if recall is None else recall.find(captured)
        compiled = captured(examples) if found is None else found
        if session.execution == "eager":
            compiled = in_pytorch(module, examples, options)
    return compiled


def _recall(
    session: Session, module: fx.GraphModule, examples: Sequence[Any], spans: Mapping[Any, Any]
) -> Recall | None:
    """Return what looks a graph up; None where that fails, and the graph is captured anew."""
    try:
        return Recall(session, module, examples, spans)
    except (TorchDynamoException, *BAD_INPUT):
        raise
    except Exception as error:
        log.warning("%s: the graph is captured anew", reason_of(error, "looking a graph up"))
        return None


def in_pytorch(
    module: fx.GraphModule, examples: Sequence[Any], options: Options
) -> Callable[..., Any]:
    """Return what runs a graph of Dynamo's that no engine runs: PyTorch, or its own compiler."""
    if options.fallback == "eager":
        return module.forward
    try:
        compiled: Callable[..., Any] = lookup_backend(options.fallback)(module, list(examples))
    except TorchDynamoException:
        raise
    except Exception as error:
        log.warning("TorchInductor cannot compile a graph (%s): it runs in eager PyTorch", error)
        return module.forward
    return compiled


@contextmanager
def _capture_timed(session: Session) -> Iterator[None]:
    """Count as capture what the stages behind it, which run inside, do not take."""
    started, before = time.perf_counter(), sum(session.timings.values())
    try:
        yield
    finally:
        inside = sum(session.timings.values()) - before
        spent = time.perf_counter() - started - inside
        session.timings["capture"] = session.timings.get("capture", 0.0) + spent


def _needs_gradients(examples: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(example, torch.Tensor) and example.requires_grad for example in examples
    )


def _execution(options: Options, examples: Sequence[Any]) -> str:
    if options.execution in ("reference", "eager"):
        return options.execution
    refusal = card_refusal(example for example in examples if isinstance(example, torch.Tensor))
    if refusal is None:
        return "engine"
    if options.execution == "engine":
        raise RuntimeFailure(f"execution='engine' is not possible: {refusal}")
    warn_once(f"{refusal}: the model runs in PyTorch")
    return "eager"


allow_again(compile_graph)
