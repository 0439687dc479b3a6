"""Many programs: drawn, checked, their findings sorted into kinds, one of each kind shrunk."""

from __future__ import annotations

import gc
import hashlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch

from tests.fuzz.checking import COMPILED, Checked, Finding, examine
from tests.fuzz.composing import script_of
from tests.fuzz.genome import Genome, genome_of, shrunk
from tests.fuzz.script import Script

#: One program in so many goes through Dynamo, which takes three times as long as without.
THROUGH_DYNAMO = 4

#: Kinds that say where they come from; of the others the steps tell one from another.
_SAY_WHERE = ("raised ", "logged: ", "refused by TensorRT: ")


@dataclass(frozen=True)
class Kind:
    """Findings that are taken for one fault.

    Attributes:
        words: the finding's own.
        steps: what the shortest program is made of.
        text: that program, and what was found.
        number: of the program that it was found with.
    """

    words: str
    steps: tuple[str, ...]
    text: str
    number: int

    def holds(self, finding: Finding, script: Script) -> bool:
        """Tell whether a finding is of this kind: another program with the same steps in it."""
        if finding.kind != self.words:
            return False
        return self.words.startswith(_SAY_WHERE) or set(self.steps) <= set(script.steps)


@dataclass(frozen=True)
class Record:
    """What became of the program of a number."""

    number: int
    direct: bool
    evaluations: int
    engines: int
    kind: str
    seconds: float


class Kinds:
    """The kinds that were found, in a folder that processes share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[tuple[str, Kind]]:
        for path in sorted(self.folder.glob("*.json")):
            known = json.loads(path.read_text())
            yield path.stem, Kind(**{**known, "steps": tuple(known["steps"])})

    def of(self, finding: Finding, script: Script) -> str | None:
        return next((name for name, kind in self if kind.holds(finding, script)), None)

    def add(self, kind: Kind) -> str:
        name = hashlib.blake2s(f"{kind.words} {kind.steps}".encode(), digest_size=4).hexdigest()
        (self.folder / f"{name}.py").write_text(kind.text)
        (self.folder / f"{name}.json").write_text(json.dumps(asdict(kind)))
        return name


def genome_of_number(seed: int, number: int) -> Genome:
    """Return a program of a series; the same number gives the same program."""
    return genome_of(Random(f"{seed}:{number}"))


def is_direct(number: int) -> bool:
    return number % THROUGH_DYNAMO != 0


def examine_script(script: Script, direct: bool) -> Checked:
    """Check a program in one of the two lanes."""
    loaded, options = script.load(), dict(script.options)
    return examine(
        loaded.model, loaded.calls, options, script.dynamic, script.again and not direct, direct
    )


def examine_genome(genome: Genome, direct: bool) -> tuple[Script, Checked] | None:
    """Write and check a program; None if nothing of it fits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's, on degenerate sizes
        script = script_of(genome)
        return None if script is None else (script, examine_script(script, direct))


def run_number(seed: int, number: int, kinds: Kinds, seconds: float = 120.0) -> Record | None:
    """Check the program of a number; shrink it if what it finds is new.

    Args:
        seed: of the series.
        number: of the program.
        kinds: where what is found goes.
        seconds: time for shrinking.
    """
    direct, started = is_direct(number), time.perf_counter()
    genome = genome_of_number(seed, number)
    made = examine_genome(genome, direct)
    if made is None:
        return None
    script, checked = made
    spent = time.perf_counter() - started
    name = ""
    if checked.finding is not None:
        name = kinds.of(checked.finding, script) or _new_kind(
            kinds, number, genome, checked.finding, direct, seconds
        )
    return Record(number, direct, checked.evaluations, checked.engines, name, spent)


def _new_kind(
    kinds: Kinds, number: int, genome: Genome, finding: Finding, direct: bool, seconds: float
) -> str:
    end = time.perf_counter() + seconds

    def fails(candidate: Genome) -> bool:
        if time.perf_counter() > end:
            return False
        made = examine_genome(candidate, direct)
        return made is not None and _is(made[1].finding, finding)

    short = shrunk(genome, fails)
    script = script_of(short)
    made = examine_genome(short, direct)
    assert script is not None
    shortest = made[1].finding if made is not None else None
    detail = (shortest or finding).detail
    lane = ", direct=True)" if direct else ")"
    text = script.text().rstrip().removesuffix(")") + lane
    comment = "".join(f"# {line}\n" for line in f"{finding.kind}\n{detail}".splitlines())
    return kinds.add(Kind(finding.kind, script.steps, f"{text}\n\n\n{comment}", number))


def _is(found: Finding | None, sought: Finding) -> bool:
    return found is not None and found.kind == sought.kind


def models_kept() -> int:
    """Return how many modules are alive that were compiled and let go."""
    torch._dynamo.reset()
    gc.collect()
    return len(COMPILED)
