"""Building behind a model that answers already: eager PyTorch until the engines are there."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch

from singlecard.capture.guards import Guards
from singlecard.capture.program import Program
from singlecard.capture.variants import Executable as Runs
from singlecard.faults import reason_of
from singlecard.observe.topics import topic
from singlecard.partition import divide
from singlecard.runtime.executable import Executable
from singlecard.runtime.runners import eager_runner

log = topic("capture")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_building: set[Future[None]] = set()
_beginning = threading.Lock()


def wait_for_builds(timeout: float | None = None) -> bool:
    """Wait until everything that ``build="background"`` began is ready, or has failed.

    Args:
        timeout: seconds to wait at most; None: as long as it takes.

    Returns:
        Whether all is done.
    """
    with _lock:
        given = set(_building)
    return not wait(given, timeout).not_done


def _submit(work: Callable[[], None]) -> None:
    """Run work after what was given before: one build at a time takes all cores already.

    A process that ends waits for what was begun, and finds it built when it starts again.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(1, "singlecard-build")
        future = _pool.submit(work)
        _building.add(future)
    future.add_done_callback(_building.discard)


#: Why an engine that was built for fewer sizes than its graph takes is not used.
_NARROWED = 'building in the background narrowed the graph\'s sizes: build="now" can say so in time'


class Pending:
    """Runs a Program in PyTorch until it is compiled, from then on with its engines.

    The exchange is one assignment: a call that runs meanwhile ends as it began.
    """

    def __init__(
        self,
        program: Program,
        compile_program: Callable[[Program], Runs],
        at_once: bool = False,
        strict: bool = False,
    ) -> None:
        """Prepare to compile when the first call comes: Dynamo has made its guards by then.

        Args:
            program: as it was captured.
            compile_program: makes what takes over, in another thread.
            at_once: begin now, where no call will come.
            strict: what went wrong behind is raised by the calls that come after it.
        """
        self._current: Runs
        self._current = in_pytorch = _in_pytorch(program.copy())
        self._frozen = in_pytorch.frozen
        self._inference = torch.is_inference_mode_enabled()
        self._guards = Guards()
        self._compile = functools.partial(compile_program, program)
        self._begun = False
        self._strict = strict
        self._failed: Exception | None = None
        if at_once:
            self._begin()

    def _begin(self) -> None:
        with _beginning:  # threads may come at once
            if not self._begun:
                self._begun = True
                try:
                    self._guards.look()
                    _submit(self._work)
                except Exception as error:  # such as no more threads
                    self._leave(error)

    def _work(self) -> None:
        try:
            with torch.inference_mode(self._inference), torch.no_grad():
                compiled = self._compile()
        except Exception as error:
            self._leave(error)
            return
        if self._guards.have_changed():  # Dynamo is done, and would not check what was found here
            log.warning("%s: this graph stays in PyTorch", _NARROWED)
        elif self._frozen.are_unchanged():
            self._current = compiled
        # Else it may be of weights that were replaced before it began, and take itself for one of
        # those that are there now. The next call leads to another.

    def _leave(self, error: Exception) -> None:
        if self._strict:
            self._failed = error
            return
        reason = reason_of(error, "compiling a graph in the background")
        log.warning("%s: this graph stays in PyTorch", reason)

    def _look(self) -> None:
        """Begin, if nobody has; raise what the caller wants to know."""
        if not self._begun:
            self._begin()
        if self._failed is not None:
            raise self._failed

    def attempt(self, args: Sequence[Any]) -> list[Any] | None:
        self._look()
        return self._current.attempt(args)

    def is_lost(self) -> bool:
        return self._current.is_lost()

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        self._look()
        return self._current(args)


def _in_pytorch(program: Program) -> Executable:
    partition = divide(program, lambda node: "its engine is being built", None)
    steps = [(segment, eager_runner(program, segment)) for segment in partition.segments]
    return Executable.of(program, steps)
