"""The way of a graph that was compiled before, in this process or another, to its engines.

What AOTAutograd does around a graph, such as making views of inputs again, is not part of a recipe:
a graph that needs any of it, or whose capture taught Dynamo a guard, takes the long way always.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TorchDynamoException
from torch._guards import TracingContext, tracing

from singlecard.capture.aot import is_frozen
from singlecard.capture.fingerprint import fingerprint
from singlecard.capture.guards import Guards
from singlecard.capture.plain import NotPlain
from singlecard.capture.statistics import Statistics, has_batch_norm
from singlecard.engine.build import find_entry
from singlecard.engine.cache import Entry
from singlecard.engine.memory import recall, remember
from singlecard.faults import BAD_INPUT, Faults, reason_of
from singlecard.observe import events
from singlecard.observe.topics import topic
from singlecard.recipe import Recipe, recipe_digest, recipe_from_plain, recipe_to_plain
from singlecard.runtime.engine import EngineRunner, settings_of
from singlecard.runtime.executable import Executable
from singlecard.runtime.frozen import Frozen
from singlecard.runtime.offload import Offload
from singlecard.runtime.ranged import STAGE, in_range
from singlecard.runtime.runners import Runner
from singlecard.runtime.torch_tensorrt import TorchTensorRTRunner
from singlecard.session import Graph, Session

log = topic("runtime")

#: Captures a graph anew, with these examples.
Capture = Callable[[Sequence[Any]], Callable[..., Any]]


class Recall:
    """One graph of Dynamo's, to be looked up before it is captured."""

    def __init__(
        self,
        session: Session,
        module: fx.GraphModule,
        examples: Sequence[Any],
        spans: Mapping[Any, Any],
    ) -> None:
        self.session, self.module = session, module
        placeholders = module.graph.find_nodes(op="placeholder")
        places = [
            place for place, node in enumerate(placeholders) if is_frozen(node, examples[place])
        ]
        weights = [examples[place] for place in places]
        #: Of what varies only what Dynamo knows, and no weights: the first call's own would never
        #: be freed, and neither would the model.
        self.examples = [
            None if place in places else node.meta.get("example_value", example)
            for place, (node, example) in enumerate(zip(placeholders, examples, strict=True))
        ]
        self._weights = Frozen(places, weights)
        behind = session.options.build == "background" and has_batch_norm(module.graph)
        self._statistics = Statistics(weights if behind else ())
        with session.timed("fingerprint"):
            found = fingerprint(module, examples)
        self.digest = None if found is None else recipe_digest(found, session.options, spans)
        self._guards = Guards()

    def weights_at(self, places: Sequence[int]) -> list[torch.Tensor]:
        """Return the weights at some places of the graph's inputs."""
        known = dict(zip(self._weights.places, self._weights.weights, strict=True))
        return [known[place] for place in places]

    def find(self, capture: Capture) -> Callable[..., Any] | None:
        """Return what runs the graph, or None where it is not known or an engine is missing.

        The reference evaluates networks, which are no part of a recipe: it takes the long way.
        """
        if self.digest is None or self.session.execution == "reference":
            return None
        try:
            with self.session.timed("recall"):
                return self._find(self.digest, capture)
        except NotPlain:
            return None
        except (TorchDynamoException, *BAD_INPUT):
            raise
        except Exception as error:
            reason = reason_of(error, "looking a graph up")
            log.warning("%s: the graph is captured anew", reason)
            return None

    def _find(self, digest: str, capture: Capture) -> Callable[..., Any] | None:
        recipe = recipe_from_plain(recall(self.session.cache, digest))
        entry = find_entry(recipe.digest, self.session.cache, self.session.remote)
        if entry is None:
            return None
        events.record_hit(recipe.digest, entry.size)
        if self.session.execution == "eager":
            return self.module.forward  # which the caller does not run
        recalled = Recalled(recipe, entry, self, capture)
        return recalled if self._weights.are_unchanged() else None

    def keep(self, graph: Graph, executable: Executable) -> None:
        """Remember what became of the graph, if it is such that the short way can say it.

        What was compiled for other weights than those that the digest is of is not remembered. A
        failure costs the next process a capture, and this one nothing.
        """
        try:
            self._keep(graph, executable)
        except Exception as error:
            reason = reason_of(error, "keeping a recipe")
            log.warning("%s: the next process captures this graph again", reason)

    def _keep(self, graph: Graph, executable: Executable) -> None:
        recipe = graph.recipe
        if self.digest is None or recipe is None or self._guards.have_changed():
            return
        unchanged = self._weights.are_unchanged() and self._statistics.are_current()
        if not unchanged or not executable.frozen.are_among(self._weights):
            return
        with contextlib.suppress(NotPlain):
            remember(self.session.cache, self.digest, recipe_to_plain(recipe))


class Recalled:
    """Runs a graph's engine; captures the graph after all when its weights have changed."""

    def __init__(self, recipe: Recipe, entry: Entry, recall: Recall, capture: Capture) -> None:
        module, wiring = recall.module, recipe.wiring
        self._in_pytorch, self._capture = module.forward, capture
        self._passed = recipe.passed
        self._strict = recall.session.options.strict
        #: What varies, for another capture; weights come with every call.
        self._examples = recall.examples
        weights = recall.weights_at(wiring.frozen)
        frozen = Frozen(wiring.frozen, weights)
        self._statistics = Statistics(weights if has_batch_norm(module.graph) else ())
        self._context = TracingContext.try_get()
        self._lock = threading.Lock()
        self._captured: Callable[..., Any] | None = None
        self._faults = Faults(STAGE, "this graph")
        session, binding = recall.session, recipe.binding
        runner: Runner
        if session.options.runtime == "tensorrt":
            size = entry.plan.stat().st_size
            settings = settings_of(session.options, size, size)
            offload = Offload(frozen, session.options.offload_weights)
            runner = EngineRunner(
                entry.plan, binding, entry, settings=settings, before_load=offload
            )
        else:
            runner = TorchTensorRTRunner(entry.plan, binding, entry)
        run = in_range(runner, binding, None)
        #: Emptied when the graph is captured after all: its engine leaves the card for the other.
        #: In a list, for Dynamo's wrapper around this keeps a copy of each attribute. And when one
        #: of its weights is gone: Dynamo keeps this for as long as the process lives.
        self._executables = executables = [Executable(wiring, [run], frozen)]
        self._weights = [weakref.ref(item, lambda _: executables.clear()) for item in weights]

    def __call__(self, *args: Any) -> Any:
        try:
            return self._results(args)
        except Exception as error:
            if self._strict or self._captured is not None:
                raise  # what was captured leaves its own faults to PyTorch
            return self._faults.answer(error, lambda: self._in_pytorch(*args))

    def _results(self, args: Sequence[Any]) -> Any:
        results = self._attempt(args)
        if results is not None:
            return results
        with self._lock:
            if self._captured is None:
                try:
                    self._captured = self._capture_anew(args)
                except Exception as error:
                    if self._strict:
                        raise
                    stage = "capturing a graph again"
                    log.warning("%s: this graph stays in PyTorch", reason_of(error, stage))
                    self._captured = self._in_pytorch
                self._executables.clear()
        return self._captured(*args)

    def _attempt(self, args: Sequence[Any]) -> Any:
        """Return the results; None for other weights than those of the engine."""
        for executable in tuple(self._executables):
            if not self._statistics.are_current():
                break
            results = executable.attempt(args)
            if results is not None:
                for place, argument in self._passed:
                    results[place] = args[argument]
                return results
        return None

    def _capture_anew(self, args: Sequence[Any]) -> Callable[..., Any]:
        """Take the long way, as Dynamo would have gone it: its sizes have their symbols still."""
        examples = [
            arg if example is None else example
            for arg, example in zip(args, self._examples, strict=True)
        ]
        with tracing(self._context):
            return self._capture(examples)
