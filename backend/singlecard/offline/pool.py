"""Jobs in processes, as many at a time as cores and memory allow."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from singlecard.offline.jobs import Job
from singlecard.offline.memory import LOADING_BYTES, need_after_loading
from singlecard.offline.process import Process
from singlecard.report.plan_rows import format_bytes

#: Seconds between two looks at the memory of the processes.
_PAUSE = 0.1


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: which one.
        status: ``built``, ``found`` (all engines were there), ``kept`` (nothing had changed since
            they were built, so that the model was not loaded) or ``failed``.
        reason: why it failed, or "".
        seconds: from the start of its process to its end.
        peak: the most bytes that its process held.
        document: what its process said of the build, as ``singlecard build --json`` does.
        parts: what the engines followed from.
        said: the end of its standard error, of one that failed.
        note: a remark, or "".
    """

    job: Job
    status: str
    reason: str = ""
    seconds: float = 0.0
    peak: int = 0
    document: Mapping[str, Any] | None = None
    parts: Mapping[str, str] | None = None
    said: str = ""
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """How much may run at a time: jobs, and bytes that they hold together."""

    workers: int
    memory: int


class Pool:
    """Runs jobs while the sum of what is set aside for them stays within the budget.

    The need of a job is known, or unknown until its model is loaded: then it says what its weights
    take, and builds only once there is room. One unknown model is loaded at a time. A job that
    needs more than the whole budget runs alone.
    """

    def __init__(
        self,
        limits: Limits,
        need: Callable[[Job], int | None],
        options: Mapping[str, Any],
        watch: Callable[[Sequence[Process]], None] = lambda running: None,
        start: Callable[..., Process] = Process.start,
    ) -> None:
        """Take what is the same for all jobs.

        Args:
            limits: what may run at a time.
            need: returns the bytes that a job will hold, or None where nobody knows.
            options: what every job's options have too, such as the cache folder.
            watch: called again and again with the jobs that run.
            start: starts the process of a job.
        """
        self._limits, self._need, self._options = limits, need, options
        self._watch, self._start_process = watch, start
        self._running: list[Process] = []
        self._notes: dict[str, str] = {}
        cores = len(os.sched_getaffinity(0))
        self._threads = max(1, cores // limits.workers)

    def run(self, jobs: Sequence[Job], done: Callable[[Outcome], None]) -> None:
        """Run jobs to their end, and call ``done`` for each as it ends."""
        waiting = list(jobs)
        with contextlib.ExitStack() as logs:
            try:
                while waiting or self._running:
                    while (job := self._next(waiting)) is not None:
                        waiting.remove(job)
                        log = logs.enter_context(tempfile.TemporaryFile())
                        self._start(job, log)
                    self._pause()
                    for process in list(self._running):
                        self._follow(process, done)
                    self._watch(self._running)
            finally:
                for process in self._running:
                    process.end()

    def _next(self, waiting: Sequence[Job]) -> Job | None:
        """Return the first job that there is room for."""
        if len(self._running) >= self._limits.workers:
            return None
        if any(process.state == "waiting" for process in self._running):
            return None  # it holds its weights: its turn comes before any other
        loading = any(process.state == "loading" for process in self._running)
        for job in waiting:
            need = self._need(job)
            if need is None and loading:
                continue
            if not self._running or self._reserved() + (need or LOADING_BYTES) <= self._budget:
                return job
        return None

    def _start(self, job: Job, log: Any) -> None:
        need = self._need(job)
        reserved = need or LOADING_BYTES
        process = self._start_process(job, self._options, reserved, log, self._threads)
        self._running.append(process)
        if need is not None:
            self._remark(process, need)
            process.let_build(need)

    def _follow(self, process: Process, done: Callable[[Outcome], None]) -> None:
        """Hear what a process has to say; let it build if there is room, or take its end."""
        ended = process.ended()  # asked first: what it said before its end is read after
        for message in process.messages():
            if "weights" in message and process.state == "loading":
                need = need_after_loading(message["held"], message["peak"], message["weights"])
                process.reserved, process.state = need, "waiting"
                self._remark(process, need)
        if process.state == "waiting" and (
            len(self._running) == 1 or self._reserved() <= self._budget
        ):
            process.let_build(process.reserved)
        if ended:
            process.end()
            self._running.remove(process)
            done(self._outcome(process))

    def _outcome(self, process: Process) -> Outcome:
        note = self._notes.get(process.job.key, "")
        answer = process.answer or {"failed": process.failure(), "known": False}
        if "failed" in answer:
            said = "" if answer["known"] else process.said()
            return Outcome(
                process.job,
                "failed",
                answer["failed"],
                process.seconds,
                process.peak,
                said=said,
                note=note,
            )
        document, parts = answer["done"]["document"], answer["done"]["parts"]
        note = "; ".join(filter(None, [note, *document["remarks"]]))
        status, reason = "found", ""
        if any(engine["built"] for engine in document["engines"]):
            status = "built"
        elif not document["engines"]:
            status, reason = "failed", _no_engine(document)
        return Outcome(
            process.job,
            status,
            reason,
            process.seconds,
            process.peak,
            document,
            parts,
            note=note,
        )

    @property
    def _budget(self) -> int:
        return self._limits.memory

    def _reserved(self) -> int:
        return sum(process.reserved for process in self._running)

    def _remark(self, process: Process, need: int) -> None:
        if need > self._budget:
            self._notes[process.job.key] = (
                f"needs about {format_bytes(need)}, more than the budget of "
                f"{format_bytes(self._budget)}: built alone"
            )

    def _pause(self) -> None:
        """Wait until a process says something, or it is time to look at their memory."""
        select.select(self._running, [], [], _PAUSE)


def _no_engine(document: Mapping[str, Any]) -> str:
    reasons = dict.fromkeys(reason for _, reason, _ in document["fallback"])
    why = next(iter(reasons), "the model has no op")
    return f"no part of the model could become an engine: {why}"
