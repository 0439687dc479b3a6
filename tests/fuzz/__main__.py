"""``python -m tests.fuzz``: runs programs for as long as asked, and says what they found."""

from __future__ import annotations

import argparse
import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: Programs of one process: Dynamo's and TensorRT's own memory grows with what they compile.
CHUNK = 200

#: Seconds after which a program is taken for one without an end.
PATIENCE = 600


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000, help="how many (20,000)")
    parser.add_argument("--seed", type=int, default=0, help="of the series of programs (0)")
    parser.add_argument("--start", type=int, default=0, help="number of the first program (0)")
    parser.add_argument("--hours", type=float, default=0.0, help="stop after so long (0: never)")
    parser.add_argument("--processes", type=int, default=2, help="that work at a time (2)")
    parser.add_argument("--into", type=Path, help="folder for what is found (a temporary one)")
    parser.add_argument(
        "--chunk", type=int, nargs=2, metavar=("FROM", "TO"), help=argparse.SUPPRESS
    )
    return parser


@dataclass
class Totals:
    """What was counted over all processes."""

    programs: int = 0
    through_dynamo: int = 0
    evaluated: int = 0
    engines: int = 0
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, line: dict[str, object]) -> None:
        self.programs += 1
        self.through_dynamo += not line["direct"]
        self.evaluated += bool(line["evaluations"])
        self.engines += int(str(line["engines"]))
        if line["kind"]:
            self.kinds[str(line["kind"])] += 1


@dataclass
class Worker:
    """A process that runs the programs of some numbers, and what it has told."""

    process: subprocess.Popen[str]
    output: Path
    last: int
    read: int = 0
    at: int = -1
    since: float = field(default_factory=time.monotonic)


def run_chunk(chosen: argparse.Namespace) -> int:
    """Run programs in this process; print a line before and after each."""
    from tests.fuzz.campaign import Kinds, models_kept, run_number

    kinds = Kinds(chosen.into)
    for number in range(*chosen.chunk):
        print(json.dumps({"begins": number}), flush=True)
        record = run_number(chosen.seed, number, kinds)
        if record is not None:
            print(json.dumps(asdict(record)), flush=True)
    kept = models_kept()
    print(json.dumps({"kept": kept}), flush=True)
    return 0


class Campaign:
    """All processes of a run."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self.chosen, self.totals = chosen, Totals()
        self.folder: Path = chosen.into or Path(tempfile.mkdtemp(prefix="singlecard-fuzz-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.next, self.end = chosen.start, chosen.start + chosen.programs
        self.workers: list[Worker] = []
        self.started = time.monotonic()

    def run(self) -> int:
        """Run until all is done; return 1 if anything was found."""
        try:
            while self.workers or self._has_more():
                while len(self.workers) < self.chosen.processes and self._has_more():
                    begin = self.next
                    self.next = min(begin + CHUNK, self.end)
                    self._start(begin, self.next)
                time.sleep(1)
                for worker in list(self.workers):
                    self._look_at(worker)
        except KeyboardInterrupt:
            for worker in self.workers:
                worker.process.terminate()
        self._print()
        return 1 if self.totals.kinds else 0

    def _has_more(self) -> bool:
        hours = (time.monotonic() - self.started) / 3600
        return self.next < self.end and not (self.chosen.hours and hours > self.chosen.hours)

    def _start(self, begin: int, end: int) -> None:
        output = self.folder / f"programs-{begin}.jsonl"
        command = [sys.executable, "-m", "tests.fuzz", "--seed", str(self.chosen.seed)]
        command += ["--into", str(self.folder), "--chunk", str(begin), str(end)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with output.open("w") as written, (self.folder / f"log-{begin}.txt").open("w") as log:
            process = subprocess.Popen(
                command, stdout=written, stderr=log, text=True, env=environment
            )
        self.workers.append(Worker(process, output, end, at=begin - 1))

    def _look_at(self, worker: Worker) -> None:
        over = worker.process.poll()
        lines = worker.output.read_text().splitlines()
        if len(lines) > worker.read:
            worker.since = time.monotonic()
        for text in lines[worker.read :]:
            line = json.loads(text)
            if "begins" in line:
                worker.at = line["begins"]
            elif "kept" in line:
                self.totals.kinds["models kept alive"] += line["kept"]
                self.totals.kinds += collections.Counter()  # drops zeros
            else:
                self.totals.add(line)
        worker.read = len(lines)
        if over is None and time.monotonic() - worker.since > PATIENCE:
            worker.process.send_signal(signal.SIGKILL)
            self.totals.kinds[f"no end after {PATIENCE} s: program {worker.at}"] += 1
            over = worker.process.wait()
        elif over:
            self.totals.kinds[f"the process ended with {over}: program {worker.at}"] += 1
        if over is not None:
            self.workers.remove(worker)
            if over and worker.at + 1 < worker.last:
                self._start(worker.at + 1, worker.last)

    def _print(self) -> None:
        from tests.fuzz.campaign import Kinds

        totals, seconds = self.totals, time.monotonic() - self.started
        print(
            f"{totals.programs} programs of series {self.chosen.seed}, {seconds / 60:.0f} minutes; "
            f"{totals.through_dynamo} of them through Dynamo: {totals.evaluated} evaluated by the "
            f"reference, {totals.engines} engines"
        )
        known = dict(Kinds(self.folder))
        for name, count in totals.kinds.most_common():
            kind = known.get(name)
            steps = f" ({', '.join(kind.steps)})" if kind is not None else ""
            print(f"{count:6} {name if kind is None else kind.words}{steps}")
            if kind is not None:
                print(f"       program {kind.number}, shortest in {self.folder / name}.py")
        if not totals.kinds:
            print("nothing found")


if __name__ == "__main__":
    given = arguments().parse_args()
    sys.exit(run_chunk(given) if given.chunk else Campaign(given).run())
