"""What one captured graph was compiled to, for each set of weights that it met."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from singlecard.capture.statistics import Statistics
from singlecard.warning import warn_once

#: How many sets of weights one graph keeps engines for at a time, to begin with.
VARIANTS = 8

#: How often one set of weights is compiled again because it was written to.
REBUILDS = 8


#: Calls the second argument in place of what raised the first.
Answers = Callable[[Exception, Callable[[], list[Any]]], list[Any]]


class Executable(Protocol):
    """What a Program was compiled to."""

    def attempt(self, args: Sequence[Any]) -> list[Any] | None:
        """Return the results, or None where it was compiled for other weights than in ``args``."""

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        """Return the results, for the weights that it was compiled for."""

    def is_lost(self) -> bool:
        """Tell whether no call can have the weights any more that it was compiled for."""


class _Weights:
    """A set of weights, known by identity and not kept alive."""

    def __init__(self, tensors: Sequence[torch.Tensor], let_go: Callable[[_Weights], None]) -> None:
        """Know these tensors.

        Args:
            tensors: the weights.
            let_go: called with this when the first of them is gone.
        """
        self.are_gone = False
        self.rebuilds = 0
        #: Version counters of weights that could not be compiled: it is not tried again with them.
        self.failed: list[int | None] | None = None
        own, method = weakref.ref(self), weakref.WeakMethod(let_go)

        def gone(_: Any) -> None:
            weights, call = own(), method()
            if weights is not None and not weights.are_gone:
                weights.are_gone = True
                if call is not None:
                    call(weights)

        self._references = [weakref.ref(tensor, gone) for tensor in tensors]

    def are(self, tensors: Sequence[torch.Tensor]) -> bool:
        pairs = zip(self._references, tensors, strict=True)
        return all(reference() is tensor for reference, tensor in pairs)


def _versions(tensors: Sequence[torch.Tensor]) -> list[int | None]:
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


@dataclass(frozen=True, eq=False)
class _Variant:
    weights: _Weights
    statistics: Statistics
    executable: Executable


class Variants:
    """Runs a graph with what was compiled for the weights of the call; compiles what is missing.

    A weight that is written to between calls, or replaced, leads to another compilation. One that
    is written to between all calls is being trained: after `REBUILDS` compilations its graph runs
    in PyTorch. Many modules may share one graph, such as the layers of a model that are compiled
    one by one: where a set of weights comes back that had to make room, there is room for one more.

    Dynamo keeps a graph for as long as the process lives, whatever became of the model. So what was
    compiled goes as soon as one of its weights is gone: with the model, or with a layer that was
    replaced.
    """

    def __init__(
        self,
        frozen: Mapping[int, torch.Tensor],
        compile_weights: Callable[[dict[int, torch.Tensor]], Executable],
        in_pytorch: Callable[[Sequence[Any]], list[Any]],
        has_statistics: bool,
        answer: Answers | None = None,
    ) -> None:
        """Compile for the first set of weights.

        Args:
            frozen: those weights, by place among the arguments.
            compile_weights: makes what runs the graph with some weights.
            in_pytorch: runs the graph in PyTorch.
            has_statistics: whether batch norms may write to weights unseen.
            answer: calls its second argument where a call raised the first one. None: it raises.
        """
        self._places = tuple(frozen)
        self._compile = compile_weights
        self._in_pytorch, self._answer = in_pytorch, answer
        self._room = VARIANTS
        self._compiling = threading.Lock()
        self._has_statistics = has_statistics
        # Both are changed by single steps of C: a weight may go in any thread, at any time.
        self._known = [_Weights(list(frozen.values()), self._let_go)]
        self._kept: list[_Variant] = []
        self._keep(self._known[0], dict(frozen))

    def _let_go(self, weights: _Weights) -> None:
        _take_out(self._known, weights)
        for item in tuple(self._kept):
            if item.weights is weights:
                _take_out(self._kept, item)

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        try:
            results = self._results(args)
        except Exception as error:
            if self._answer is None:
                raise
            return self._answer(error, functools.partial(self._in_pytorch, args))
        return self._in_pytorch(args) if results is None else results

    def _results(self, args: Sequence[Any]) -> list[Any] | None:
        """Return the results of what was compiled; None where PyTorch is to run the graph."""
        results = self._attempt(args)
        if results is not None:
            return results
        with self._compiling:
            results = self._attempt(args)  # another thread may have met the same weights
            if results is not None:
                return results
            executable = self._new(args)
        return None if executable is None else executable(args)

    def _attempt(self, args: Sequence[Any]) -> list[Any] | None:
        for item in tuple(self._kept):
            if item.statistics.are_current():
                results = item.executable.attempt(args)
                if results is not None:
                    return results
        return None

    def _new(self, args: Sequence[Any]) -> Executable | None:
        """Compile for the weights in ``args``; return None where that is no use any more."""
        given = {place: args[place] for place in self._places}
        tensors = list(given.values())
        weights = next((item for item in tuple(self._known) if item.are(tensors)), None)
        if weights is not None and weights.failed == _versions(tensors):
            return None
        if weights is None:
            weights = _Weights(tensors, self._let_go)
            self._known.append(weights)
        elif not any(item.weights is weights for item in tuple(self._kept)):
            self._room += 1
        elif weights.rebuilds >= REBUILDS:
            warn_once(
                f"the weights of a compiled graph were changed more than {REBUILDS} times, and "
                "an engine built for each: the graph runs in eager PyTorch from here on when they "
                "change again. Compile the model after training, or call torch._dynamo.reset()"
            )
            return None
        else:
            weights.rebuilds += 1
        try:
            return self._keep(weights, given)
        except Exception:
            weights.failed = _versions(tensors)
            raise

    def _keep(self, weights: _Weights, frozen: dict[int, torch.Tensor]) -> Executable:
        # Looked at before compiling: who trains meanwhile must be noticed.
        statistics = Statistics(frozen.values() if self._has_statistics else ())
        executable = self._compile(frozen)
        # An engine that nobody can call would keep its memory of the card.
        for item in tuple(self._kept):
            if not item.statistics.are_current() or item.executable.is_lost():
                _take_out(self._kept, item)
        self._kept.insert(0, _Variant(weights, statistics, executable))
        del self._kept[self._room :]
        if weights.are_gone:
            self._let_go(weights)
        return executable


def _take_out(items: list[Any], item: Any) -> None:
    """Take something out of a list, unless another thread has done so."""
    with contextlib.suppress(ValueError):
        items.remove(item)
