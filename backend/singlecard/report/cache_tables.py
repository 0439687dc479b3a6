"""The cache of built engines as tables."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from singlecard.checking import counted
from singlecard.engine.cache import Entry
from singlecard.engine.nearest import Difference, part_title
from singlecard.report.plan_rows import Grid, format_bytes, format_count
from singlecard.report.render import table_of
from singlecard.report.tables import SHOWN_DIGITS, facts_table

if TYPE_CHECKING:  # it imports PyTorch, which the tables themselves can do without
    from singlecard.report.keys import EngineLookup


def entries_table(folder: Path, entries: Sequence[Entry]) -> Table:
    """Return one row for each engine."""
    rows = [
        (
            entry.digest[:SHOWN_DIGITS],
            entry.manifest["key"]["targets"],
            f"{entry.manifest['key']['flavour']} {entry.manifest['key']['version']}",
            format_count(kernel_count(entry)),
            format_bytes(entry.size),
            f"{entry.manifest['build_seconds']:.1f} s",
            time_text(entry.folder.stat().st_mtime),
        )
        for entry in entries
    ]
    columns = ("engine", "targets", "built by", "kernels>", "size>", "built in>", "last used")
    total = format_bytes(sum(entry.size for entry in entries))
    note = f"{counted(len(entries), 'engine')}, {total}, in {folder}"
    return table_of(Grid("Cache", columns, tuple(rows), note))


def kernel_count(entry: Entry) -> int | None:
    """Return how many kernels an engine's report lists; None where they are not known."""
    kernels = entry.manifest["report"]["kernels"]
    return None if kernels is None else len(kernels)


def entry_table(entry: Entry) -> Table:
    """Return the parts of an engine's key, and where it is."""
    key = entry.manifest["key"]
    rows = [(part_title(part), str(value), "") for part, value in key.items()]
    rows += [
        ("built", time_text(entry.manifest["created"]), ""),
        ("plan", str(entry.plan), format_bytes(entry.size)),
    ]
    return facts_table(f"Engine {entry.digest}", rows)


def verified_table(folder: Path, wrong: Mapping[str, str | None]) -> Table:
    """Return one row for each engine: whole, or what is wrong with it."""
    rows = [(digest[:SHOWN_DIGITS], reason or "whole") for digest, reason in wrong.items()]
    damaged = sum(reason is not None for reason in wrong.values())
    note = f"{counted(len(wrong), 'engine')} in {folder}, {damaged} damaged"
    if damaged:
        note += ": each is built again when it is needed, or remove all with 'cache clear'"
    return table_of(Grid("Checked", ("engine", "state"), tuple(rows), note))


def lookups_table(model: str, folder: Path, lookups: Sequence[EngineLookup]) -> RenderableType:
    """Return one row for each engine of a model, and for each miss what it does not share."""
    rows = [
        (item.digest[:SHOWN_DIGITS], "hit" if item.cached else "miss", item.reason)
        for item in lookups
    ]
    if not lookups:
        return Text(
            f"no part of {model} can become an engine: 'singlecard explain {model}' says why",
            overflow="fold",
        )
    there = sum(item.cached for item in lookups)
    note = f"{there} of {len(lookups)} engines of {model} are in {folder}"
    parts: list[RenderableType] = [
        table_of(Grid("Engines", ("engine", "cache", "why"), tuple(rows))),
        Text(note, no_wrap=True, overflow="ignore"),
    ]
    for item in lookups:
        if item.nearest is not None:
            parts += [
                "",
                differences_table(item.digest, item.nearest.digest, item.nearest.differences),
            ]
    return Group(*parts)


def differences_table(here: str, there: str, found: Sequence[Difference]) -> Table:
    """Return one row for each part that the keys of two engines do not share."""
    first, second = here[:SHOWN_DIGITS], there[:SHOWN_DIGITS]
    rows = [(item.part, *_shown(item)) for item in found]
    note = "" if rows else "they have one key"
    title = f"{first} and {second}"
    return table_of(Grid(title, ("part", first, second), tuple(rows), note))


def _shown(item: Difference) -> tuple[str, str]:
    """Return both values: digests as long as names of engines are, of long lists what differs."""
    if all(re.fullmatch("[0-9a-f]{64}", value) for value in (item.here, item.there)):
        return item.here[:SHOWN_DIGITS], item.there[:SHOWN_DIGITS]
    here, there = item.here.split(), item.there.split()
    if item.part in ("inputs", "outputs") and len(here) == len(there) > 1:
        pairs = [(at, *pair) for at, pair in enumerate(zip(here, there, strict=True))]
        apart = [(f"{at}: {one}", f"{at}: {two}") for at, one, two in pairs if one != two]
        return ", ".join(one for one, _ in apart), ", ".join(two for _, two in apart)
    return item.here, item.there


def time_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
