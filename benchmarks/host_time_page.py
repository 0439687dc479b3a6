"""`results/host_time.md` from the numbers of `host_time.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: What the project holds itself to: microseconds of one call of a static engine.
AIM = 30.0

#: Titles of the levels, from the inside out.
_LEVELS = {
    "engine": "`LoadedEngine`",
    "runner": "`EngineRunner`",
    "executable": "`Executable`",
    "graph": "the graph",
    "compile": "`torch.compile`",
    "dynamo": "of it Dynamo alone",
    "load": "`singlecard.load`",
}


def render_page(result: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    rows, costs = result["rows"], result["call_nanoseconds"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    columns = ("case", *_LEVELS.values(), "library calls")
    parts = [
        "# Host time of one call, without the card's part",
        f"Written by `python benchmarks/host_time.py`. Machine: {machine}.",
        f"Microseconds, the median of {result['rounds']} rounds and in brackets the least; a round "
        f"is the median of {result['calls']} calls. Each level has those to its left in it: "
        "`LoadedEngine` is one engine on the card, *the graph* is what Dynamo calls, "
        "`torch.compile` a call of the compiled model, *Dynamo alone* the same with a graph that "
        "does nothing. `singlecard.load` is a call of an artifact's model, without Dynamo.",
        "A card and a TensorRT that do nothing stand in the place of the real ones. **What they "
        "take is not in these figures**: launching the engine, CUDA's allocator, and the way into "
        "the library. Results are allocated in host memory. They are held until the next call is "
        "done, as in a loop, so TensorRT is told new addresses each time.",
        _table(columns, [_line(row) for row in rows]),
        "*Library calls* are those of TensorRT in each call. What one costs besides its work, "
        "measured with other members of the same library, which need no card; with the Python that "
        "stands in for it in the table; and what PyTorch takes to allocate one result: "
        + ", ".join(f"`{text}` {cost:.0f} ns" for text, cost in costs.items())
        + ".",
        f"The aim: under {AIM:g} microseconds for a static engine. {_verdict(rows)}",
    ]
    return "\n\n".join(parts) + "\n"


def _line(row: Mapping[str, Any]) -> list[str]:
    times = [row["microseconds"][level] for level in _LEVELS]
    cells = [f"{time['median']:.1f} ({time['least']:.1f})" for time in times]
    return [row["case"], *cells, f"{row['calls']:g}"]


def _verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how much of the aim is left for what is not measured."""
    said = []
    for level, words in (("graph", "the graph"), ("load", "`singlecard.load`")):
        over = [row["case"] for row in rows if row["microseconds"][level]["median"] >= AIM]
        said.append(f"{words}: {'over it with ' + ', '.join(over) if over else 'under it'}")
    return f"Our own part alone: {'; '.join(said)}. Whether calls reach it only a card can show."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
