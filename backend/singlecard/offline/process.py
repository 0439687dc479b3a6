"""The process of one job, seen from outside: what it said, what it holds, how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import singlecard
from singlecard.offline.jobs import Job
from singlecard.offline.memory import held_memory

#: Appended to the search path, so that the child finds the singlecard that its parent is.
_START = (
    "import sys; sys.path[:] = [*filter(None, sys.path), sys.argv[1]]; "
    "from singlecard.offline.worker import main; sys.exit(main())"
)

#: Lines of standard error that are kept of a job that failed.
_TAIL = 20
_TAIL_BYTES = 64_000


@dataclass
class Process:
    """A running job.

    Attributes:
        job: what it does.
        reserved: bytes that are set aside for it.
        state: ``loading``, ``waiting`` for room, or ``building``.
        peak: the most bytes that it was seen to hold.
    """

    job: Job
    reserved: int
    state: str
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)
    peak: int = 0
    held: int = 0
    answer: dict[str, Any] | None = None
    _read: bytes = b""

    @classmethod
    def start(
        cls, job: Job, options: Mapping[str, Any], reserved: int, log: IO[bytes], threads: int
    ) -> Process:
        """Start a job in a fresh interpreter."""
        package = str(Path(singlecard.__file__).parents[1])
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        child = subprocess.Popen(
            [sys.executable, "-c", _START, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        assert child.stdout is not None
        os.set_blocking(child.stdout.fileno(), False)
        process = cls(job, reserved, "loading", child, log)
        request = job.request()
        request["options"] = {**request["options"], **options}
        request["files"] = [str(path) for path in job.files()]
        process._say(json.dumps(request))
        return process

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def let_build(self, reserved: int) -> None:
        """Give a loaded model permission to build."""
        self.reserved, self.state = reserved, "building"
        self._say("go")

    def messages(self) -> list[dict[str, Any]]:
        """Return what it said since the last call, and look at its memory."""
        held, peak = held_memory(self.child.pid)
        self.held, self.peak = held, max(self.peak, peak)
        assert self.child.stdout is not None
        while chunk := self.child.stdout.read():
            self._read += chunk
        *lines, self._read = self._read.split(b"\n")
        messages = [json.loads(line) for line in lines]
        for message in messages:
            self.peak = max(self.peak, message["peak"])
            if "weights" not in message:
                self.answer = message
        return messages

    def fileno(self) -> int:
        """Return the pipe that it answers on, for `select`."""
        assert self.child.stdout is not None
        return self.child.stdout.fileno()

    def ended(self) -> bool:
        return self.child.poll() is not None

    def failure(self) -> str:
        """Return why it ended without an answer."""
        status = self.child.returncode
        if status >= 0:
            return f"its process ended with status {status} in the middle"
        name = signal.Signals(-status).name
        if name == "SIGKILL":
            return (
                "its process was killed (SIGKILL), as the system does when memory runs out: it "
                f"held {self.peak / 1e9:.1f} GB. Give the model a key memory with more, or the "
                "build fewer workers"
            )
        return f"its process crashed ({name})"

    def said(self) -> str:
        """Return the end of what it wrote to standard error."""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = self.log.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_TAIL:])

    def end(self) -> None:
        """See that nothing of it is left."""
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)  # with whatever the model started
            self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def _say(self, line: str) -> None:
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(line.encode() + b"\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass  # it died, which is noticed where its end is
