"""A program before it is text: strings of bytes, of which each step is one.

Steps can be left out and bytes can become zero without changing what the others mean, which is what
makes a program that fails shrink to a short one. hypothesis shrinks; it does not draw. Its drawing
varies what it drew before, so that hundreds of its programs are a few dozen that differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from hypothesis.database import InMemoryExampleDatabase, choices_to_bytes
from hypothesis.errors import NoSuchExample

#: Bytes of a step: two for each of the names that are tried, and those that it chooses by.
NAMES_TRIED, CHOICES = 4, 10


@dataclass(frozen=True)
class Genome:
    """A program as it was drawn.

    Attributes:
        calls: for each call, the bytes that its sizes and numbers come from.
        inputs, steps: what forward is given, and does.
        returned: chooses what is returned, and in which nest.
        setting: chooses precision, sizes that vary, and the other options.
    """

    calls: tuple[bytes, ...]
    inputs: tuple[bytes, ...]
    steps: tuple[bytes, ...]
    returned: bytes
    setting: bytes


#: Lengths of a call's, an input's and a step's string, and how many of each a program has.
_CALL, _INPUT, _STEP = 6, 6, 2 * NAMES_TRIED + CHOICES
_CALLS, _INPUTS, _STEPS = (1, 4), (1, 3), (1, 12)
_RETURNED, _SETTING = 6, 16


def genome_of(random: Random, most_steps: int = _STEPS[1]) -> Genome:
    """Draw a program, every byte of it for itself."""

    def strings(length: int, counts: tuple[int, int]) -> tuple[bytes, ...]:
        # Short programs are the cheaper ones, and most faults need little.
        count = min(random.randint(*counts), random.randint(*counts))
        return tuple(random.randbytes(length) for _ in range(count))

    return Genome(
        strings(_CALL, _CALLS),
        strings(_INPUT, _INPUTS),
        strings(_STEP, (_STEPS[0], most_steps)),
        random.randbytes(_RETURNED),
        random.randbytes(_SETTING),
    )


def _string(length: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=length, max_size=length)


def _strings(length: int, counts: tuple[int, int]) -> st.SearchStrategy[tuple[bytes, ...]]:
    return st.lists(_string(length), min_size=counts[0], max_size=counts[1]).map(tuple)


#: What `genome_of` draws from, as hypothesis knows it.
GENOMES: st.SearchStrategy[Genome] = st.builds(
    Genome,
    _strings(_CALL, _CALLS),
    _strings(_INPUT, _INPUTS),
    _strings(_STEP, _STEPS),
    _string(_RETURNED),
    _string(_SETTING),
)


def _drawn(genome: Genome) -> bytes:
    """Return what hypothesis would have kept, had it drawn a genome."""
    choices: list[bool | bytes] = []
    for strings in (genome.calls, genome.inputs, genome.steps):
        for string in strings:
            choices += [True, string]  # a list asks before each item whether there is one more
        choices.append(False)
    return choices_to_bytes([*choices, genome.returned, genome.setting])


def _shorter(genome: Genome, fails: Callable[[Genome], bool]) -> Genome:
    """Leave out steps, calls, inputs and settings one by one: each try may take a second."""
    for name in ("steps", "calls", "inputs"):
        place = len(getattr(genome, name)) - 1
        while place >= 0 and len(getattr(genome, name)) > 1:
            strings = getattr(genome, name)
            less = replace(genome, **{name: strings[:place] + strings[place + 1 :]})
            if fails(less):
                genome = less
            place -= 1
    for name in ("returned", "setting"):
        string = getattr(genome, name)
        for place in range(len(string)):
            simple = getattr(genome, name)
            less = replace(genome, **{name: simple[:place] + b"\0" + simple[place + 1 :]})
            if simple[place] and fails(less):
                genome = less
    return genome


def shrunk(genome: Genome, fails: Callable[[Genome], bool], tries: int = 300) -> Genome:
    """Return the simplest genome that fails that is found in so many tries."""
    known = {genome: True}

    def condition(candidate: Genome) -> bool:
        # Known answers are given again, so that what hypothesis ends with fails as it did.
        if candidate not in known and len(known) < tries:
            known[candidate] = fails(candidate)
        return known.get(candidate, False)

    genome = _shorter(genome, condition)
    database = InMemoryExampleDatabase()
    database.save(b"program", _drawn(genome))
    chosen = settings(
        database=database,
        phases=[Phase.reuse, Phase.shrink],
        max_examples=10 * tries,
        deadline=None,
    )
    try:
        return find(GENOMES, condition, settings=chosen, database_key=b"program")
    except NoSuchExample:
        return genome
