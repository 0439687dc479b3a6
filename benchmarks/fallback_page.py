"""`results/fallback.md` from the numbers of `fallback.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What the project holds itself to: times that plain Inductor takes.
AIM = 1.03


def render_page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = result["rows"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    columns = (
        "model",
        "kernels: plain",
        "fallback",
        "milliseconds: plain",
        "fallback",
        "fallback / plain",
        "plain again / plain",
        "fallback / plain, wall clock",
        "plain again / plain, wall clock",
    )
    lines = [columns, ["---"] * len(columns), *map(_line, rows)]
    parts = [
        '# `fallback="inductor"` beside plain TorchInductor',
        f"Written by `python benchmarks/fallback.py`. Machine: {machine}.",
        "No card serves engines here, so the whole graph goes to TorchInductor, on the CPU and "
        f"with one thread. Medians of {rows[0]['rounds']} calls each, in turn; CPU time of the "
        "thread, which does not count other programs, and the ratios by the wall clock beside it. "
        "*Plain again* is a second compilation by TorchInductor: how far it is from the first is "
        "what this machine cannot tell apart. A card's times are not here.",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        f"The aim: at most {AIM:g} times plain Inductor. {_verdict(rows)}",
    ]
    return "\n\n".join(parts) + "\n"


def ratio(row: dict[str, Any], way: str, clock: str) -> float:
    """Return the time of one way over that of plain Inductor."""
    times = row["milliseconds"]
    return float(times[way][clock] / times["plain"][clock])


def _line(row: dict[str, Any]) -> list[str]:
    kernels, times = row["kernels"], row["milliseconds"]
    return [
        f"`{row['model']}`",
        str(kernels["plain"]),
        str(kernels["singlecard"]),
        f"{times['plain']['cpu']:.2f}",
        f"{times['singlecard']['cpu']:.2f}",
        *(
            f"{ratio(row, way, clock):.3f}"
            for clock in ("cpu", "wall")
            for way in ("singlecard", "plain again")
        ),
    ]


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    missed = [row["model"] for row in rows if ratio(row, "singlecard", "cpu") > AIM]
    return f"**Missed** for {', '.join(missed)}." if missed else "Met for all."
