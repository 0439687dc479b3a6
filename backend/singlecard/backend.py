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
from singlecard.capture.spans import symbols_of
from singlecard.capture.variants import Executable
from singlecard.collection import collection_paused
from singlecard.errors import CaptureError, OptionError, RuntimeFailure, SinglecardError
from singlecard.observe import events
from singlecard.observe.topics import topic
from singlecard.options import Options
from singlecard.recalled import Recall
from singlecard.runtime.device import card_refusal, target_of
from singlecard.runtime.torch_tensorrt import load_torch_tensorrt
from singlecard.session import Graph, Session
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
    session = Session(chosen, execution, build)
    return compile_in(session, module, examples, remembers=build)


def compile_in(
    session: Session,
    module: fx.GraphModule,
    examples: Sequence[Any],
    *,
    remembers: bool = False,
) -> Callable[..., Any]:
    """Compile one graph of Dynamo's under a session; a graph that cannot be captured stays eager.

    Args:
        session: keeps what was compiled.
        module: the graph.
        examples: the tensors and sizes it was traced with.
        remembers: look for what became of the same graph before, and keep what becomes of it now.

    Raises:
        SinglecardError: with ``strict=True``, whatever stands in the way.
    """
    try:
        with collection_paused(), _capture_timed(session):
            spans = symbols_of(module, session.options.profiles)
            recall = Recall(session, module, examples, spans) if remembers else None

            def compile_program(program: Program) -> Executable:
                executable = session.compile(program, spans)
                if recall is not None:
                    recall.keep(session.graphs[-1], executable)
                return executable

            behind = session.options.build == "background" and session.execution != "reference"

            def compile_behind(program: Program) -> Executable:
                executable = compile_program(program)
                for engine in session.graphs[-1].engines:
                    if engine.built:
                        events.record_background_build(engine.digest)
                return executable

            at_once = session.execution == "eager"
            later = functools.partial(Pending, compile_program=compile_behind, at_once=at_once)

            def captured(values: Sequence[Any]) -> Callable[..., Any]:
                return capture(module, values, later if behind else compile_program)

            found = None if recall is None else recall.find(captured)
            compiled = captured(examples) if found is None else found
            if session.execution == "eager":
                compiled = in_pytorch(module, examples, session.options)
    except TorchDynamoException:
        raise  # Dynamo's own way to start over
    except Exception as error:
        known = isinstance(error, SinglecardError)
        if session.options.strict or (known and not isinstance(error, CaptureError)):
            raise
        reason = str(error) if known else f"PyTorch could not capture the graph ({error})"
        log.warning("%s: this graph stays in PyTorch", reason)
        session.graphs.append(Graph.left_out(module, reason))
        return in_pytorch(module, examples, session.options)
    return compiled


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
