"""Building behind a model that answers already: eager PyTorch until the engines are there."""

from __future__ import annotations

import threading
import traceback
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
_building: dict[Future[None], Pending] = {}
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


def _submit(pending: Pending) -> None:
    """Build after what was given before: one build at a time takes all cores already.

    A process that ends waits for what was begun, and finds it built when it starts again. But one
    that goes on to other models would wait for those that are gone, and hold their weights.
    """
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(1, "singlecard-build")
        for other in tuple(_building.values()):  # one may just be done
            other.give_up()
        future = _pool.submit(pending.work)
        _building[future] = pending
    future.add_done_callback(lambda done: _building.pop(done, None))


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
        #: What is compiled, until it is; its weights may go meanwhile.
        self._program: Program | None = program
        program.frozen = {}
        self._compile = compile_program
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
                    _submit(self)
                except Exception as error:  # such as no more threads
                    self._leave(error)

    def give_up(self) -> None:
        """Do not build what nobody can call any more; what is being built is finished."""
        if self._frozen.are_gone():
            self._program = None

    def work(self) -> None:
        """Build, and let the calls that follow have it."""
        program, self._program = self._program, None
        if program is None:
            return
        # Without them, for a model that is gone, the engines are there when it comes again.
        program.frozen = dict(zip(self._frozen.places, self._frozen.weights, strict=False))
        try:
            with torch.inference_mode(self._inference), torch.no_grad():
                compiled = self._compile(program)
        except Exception as error:
            self._leave(error)
            return
        finally:
            program.frozen = {}
            del program
        if self._guards.have_changed():  # Dynamo is done, and would not check what was found here
            log.warning("%s: this graph stays in PyTorch", _NARROWED)
        elif self._frozen.are_unchanged():
            self._current = compiled
        # Else it may be of weights that were replaced before it began, and take itself for one of
        # those that are there now. The next call leads to another.

    def _leave(self, error: Exception) -> None:
        if self._strict:
            traceback.clear_frames(error.__traceback__)  # which hold the model
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
