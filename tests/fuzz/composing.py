"""From what was drawn to a program: steps that fit are written, the others are left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from tests.fuzz.genome import NAMES_TRIED, Genome
from tests.fuzz.inputs import INPUTS, Sizes
from tests.fuzz.motifs import MOTIFS
from tests.fuzz.script import Script
from tests.fuzz.templates import TEMPLATES, WRITES, step_of, write_of
from tests.fuzz.writer import Choices, Line, Writer

STEPS: dict[str, Callable[[Writer], None]] = {
    **{template: step_of(template) for template in TEMPLATES},
    **{template: write_of(template) for template in WRITES},
    **MOTIFS,
}

#: Templates are many and motifs few: by this list half of all steps are motifs.
_NAMES = (*TEMPLATES, *WRITES, *list(MOTIFS) * (len(TEMPLATES) // len(MOTIFS)))

#: Values stay far below what a half holds, 65504: squares and sums on the way must fit too.
_LARGEST = {"fp32": 1e5, "bf16": 1e5, "fp16": 100.0}


def script_of(genome: Genome) -> Script | None:
    """Write a program; None if nothing of it fits."""
    setting = Choices(genome.setting)
    precision = setting.one_of("fp32", "fp32", "fp32", "fp32", "fp32", "fp16", "fp16", "bf16")
    vary = setting.below(16)
    writer = Writer(len(genome.calls), _LARGEST[precision])
    names, arguments = _write_inputs(writer, genome, vary)
    if not names:
        return None
    steps = [_write_step(writer, gene) for gene in genome.steps]
    made = [name for name in writer.values if name.startswith("v")]
    if not made:
        return None
    returns, kept = _returned(writer, Choices(genome.returned), made)
    lines = _needed(writer.lines, kept)
    parts = [
        part
        for name, part in zip(writer.part_names, writer.parts, strict=True)
        if any(f"self.{name}" in line.text for line in lines) or f"self.{name}" in returns
    ]
    options, dynamic, again = _settings(setting, precision, writer, parts)
    return Script(
        tuple(parts),
        tuple(names),
        tuple(line.text for line in lines),
        returns,
        tuple(f"({', '.join(call)},)" for call in zip(*arguments, strict=True)),
        options,
        dynamic,
        again,
        tuple(dict.fromkeys(step for step in steps if step)),
    )


def _write_step(writer: Writer, gene: bytes) -> str:
    """Write the first of a gene's steps that fits, and return its name, or "" where none does."""
    for place in range(NAMES_TRIED):
        name = _NAMES[int.from_bytes(gene[2 * place : 2 * place + 2], "big") % len(_NAMES)]
        if writer.attempt(STEPS[name], gene[2 * NAMES_TRIED :]):
            return name
    return ""


def _write_inputs(writer: Writer, genome: Genome, vary: int) -> tuple[list[str], list[list[str]]]:
    sizes: list[Sizes] = []
    for numbers in genome.calls:
        sizes.append(Sizes.of(numbers, sizes[0] if sizes else None, vary))
    names: list[str] = []
    arguments: list[list[str]] = []
    for gene in genome.inputs:
        # A first input that steps of floats can take: few programs need none.
        kinds = list(INPUTS) if names else list(INPUTS)[:6]
        write = INPUTS[kinds[gene[0] % len(kinds)]]
        texts = [write(size, Choices(gene[1:])) for size in sizes]
        name = f"in{len(names)}"
        values = [eval(text, {"torch": torch}) for text in texts]
        for space, value in zip(writer.spaces, values, strict=True):
            space[name] = value
        names.append(name)
        writer.values.append(name)
        arguments.append(texts)
    return names, arguments


def _returned(writer: Writer, choices: Choices, made: list[str]) -> tuple[str, set[str]]:
    """Return the expression that forward returns, and the names in it."""
    latest = [made[-1]]
    if choices.chance(2):  # whatever no line reads: nothing that was written is in vain
        used = set().union(*(line.used for line in writer.lines))
        latest += [name for name in made[:-1] if name not in used]
    for _ in range(choices.one_of(0, 0, 0, 1, 2)):
        # Also what is there already: outputs that are inputs, or each other.
        latest.append(writer.values[-1 - choices.below(len(writer.values))])
    if len(latest) == 1:
        form = choices.one_of("{0}", "({0},)", "{{'out': {0}}}", "[{0}, None]", "({0}, {0})")
        return form.format(*latest), set(latest)
    form = choices.one_of(
        "({})", "[{}]", "({}, None)", "{{'a': ({}), 'n': 3}}", "(({}), 2.5, 'text')"
    )
    return form.format(", ".join(latest)), set(latest)


def _needed(lines: Iterable[Line], kept: set[str]) -> list[Line]:
    """Leave out lines whose values nobody reads."""
    needed: list[Line] = []
    wanted = set(kept)
    for line in reversed(list(lines)):
        if line.effect or wanted.intersection(line.names):
            needed.append(line)
            wanted |= line.used
    return needed[::-1]


def _settings(
    choices: Choices, precision: str, writer: Writer, parts: list[str]
) -> tuple[dict[str, Any], bool | None, bool]:
    options: dict[str, Any] = {"execution": "reference"}
    if precision != "fp32":
        options["precision"] = precision
    # Without targets nothing is built, which saves half of a program's time.
    cards = [None, None, None, None, None, ("sm89",), ("sm86", "sm89"), ("sm120",)]
    if precision != "bf16":  # SM75 has none, and says so
        cards.append(("sm75",))
    targets = choices.one_of(*cards)
    if targets:
        options["targets"] = targets
    size = choices.one_of(1, 1, 1, None, None, 3)
    if size:
        options["min_block_size"] = size
    kind = choices.below(16)
    if kind == 12:
        options["exclude_ops"] = choices.one_of(
            ("aten.add",), ("aten.linear",), ("aten.view",), ("aten.mul",), ("aten.cat",)
        )
    elif kind == 13 and any(" = nn." in part and "Parameter" not in part for part in parts):
        names = [part.split(" ")[0].removeprefix("self.") for part in parts if " = nn." in part]
        options["exclude_modules"] = (choices.one_of(*names),)
    elif kind == 14:
        options["demote_float64"] = True
    elif kind == 15 and targets:
        options |= choices.one_of({"build": "never"}, {"execution": "eager", "build": "background"})
    dynamic = choices.one_of(None, None, True, False)
    return options, dynamic, bool(targets) and choices.chance(4)
