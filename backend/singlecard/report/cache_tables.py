"""The cache of built engines as tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from singlecard.engine.cache import Entry
from singlecard.report.plan_rows import Grid, format_bytes
from singlecard.report.render import table_of
from singlecard.report.tables import SHOWN_DIGITS, facts_table


def entries_table(folder: Path, entries: Sequence[Entry]) -> Table:
    """Return one row for each engine."""
    rows = [
        (
            entry.digest[:SHOWN_DIGITS],
            entry.manifest["key"]["targets"],
            f"{entry.manifest['key']['flavour']} {entry.manifest['key']['version']}",
            str(len(entry.manifest["report"]["kernels"])),
            format_bytes(entry.size),
            f"{entry.manifest['build_seconds']:.1f} s",
            time_text(entry.folder.stat().st_mtime),
        )
        for entry in entries
    ]
    columns = ("engine", "targets", "built by", "kernels>", "size>", "built in>", "last used")
    total = format_bytes(sum(entry.size for entry in entries))
    note = f"{len(entries)} engines, {total}, in {folder}"
    return table_of(Grid("Cache", columns, tuple(rows), note))


def entry_table(entry: Entry) -> Table:
    """Return the parts of an engine's key, and where it is."""
    rows = [(part, str(value), "") for part, value in entry.manifest["key"].items()]
    rows += [
        ("built", time_text(entry.manifest["created"]), ""),
        ("plan", str(entry.plan), format_bytes(entry.size)),
    ]
    return facts_table(f"Engine {entry.digest}", rows)


def verified_table(folder: Path, wrong: Mapping[str, str | None]) -> Table:
    """Return one row for each engine: whole, or what is wrong with it."""
    rows = [(digest[:SHOWN_DIGITS], reason or "whole") for digest, reason in wrong.items()]
    damaged = sum(reason is not None for reason in wrong.values())
    note = f"{len(wrong)} engines in {folder}, {damaged} damaged"
    if damaged:
        note += ": each is built again when it is needed, or remove all with 'cache clear'"
    return table_of(Grid("Checked", ("engine", "state"), tuple(rows), note))


def time_text(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
