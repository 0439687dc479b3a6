"""``cache_faults.md`` from the figures of `cache_faults`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render_page(document: Mapping[str, Any]) -> str:
    """Return the page, which says first whether anything went wrong."""
    machine = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    faults = document["faults"]
    lines = [
        "# Faults of the engine cache",
        "",
        f"Written by `python benchmarks/cache_faults.py` in {document['seconds']} s with seed "
        f"{document['seed']}. Machine: {machine}.",
        "",
        "**Nothing went wrong.**" if not faults else "**WRONG:**",
        *(f"- {fault}" for fault in faults),
        "",
        "## Kills",
        "",
        "A process that builds, loads, damages and removes engines is killed at a random moment, "
        "every other time while a second one goes on in the same folder. Afterwards every engine "
        "is compared with what it must be, one is asked for, and what the dead left is swept.",
        "",
        *_table(document["kills"]),
        "",
        "What the killed ones were doing:",
        "",
        *_table(document["kills"]["phases"]),
        "",
        "## Corruptions",
        "",
        *_corruptions(document["corruptions"]),
    ]
    titles = {
        "race": "Many processes that want the same engines",
        "race within a limit": "The same within a limit of five engines, two held by each",
        "full disks": "Full disks",
        "TensorRT builds": "Killed while TensorRT builds",
    }
    for part, title in titles.items():
        if part in document:
            lines += ["", f"## {title}", "", *_table(document[part])]
    return "\n".join(lines) + "\n"


def _table(figures: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {key.replace('_', ' ')} | {value:,} |"
        for key, value in figures.items()
        if isinstance(value, (int, float))
    ]
    return ["| what | count |", "| --- | ---: |", *rows]


def _corruptions(figures: Mapping[str, Any]) -> list[str]:
    keys = list(figures["total"])
    rows = [*figures["kinds"].items(), ("**all**", figures["total"])]
    return [
        f"| kind | {' | '.join(keys)} |",
        f"| --- |{' ---: |' * len(keys)}",
        *(f"| {kind} | {' | '.join(str(row[key]) for key in keys)} |" for kind, row in rows),
        "",
        f"Names left behind: {figures['names left behind']}.",
    ]
