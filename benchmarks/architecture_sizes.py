"""Whole models whose sizes change: one call as they are listed, two with further sizes.

    python benchmarks/architecture_sizes.py                # all but those that take a cache
    python benchmarks/architecture_sizes.py bert swin      # these; the other results stay

The models are those of ``tests/models/architectures.py``. Each is compiled with ``dynamic=None``
and default options, and called in turn; the batch changes, and with it the length or the
resolution where the model takes another. Engines are really built, for SM89, and the reference
answers. Writes ``results/architecture_sizes.json`` and, to be read, ``architecture_sizes.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from architectures import RESULTS, load_architectures
from machine import describe_machine

import singlecard
from singlecard.backend import compile_in
from singlecard.options import Options
from singlecard.report.measure import fresh_call
from singlecard.report.verify import compare
from singlecard.session import Session


@torch.no_grad()
def measure_sizes(one: Any, cache: str) -> dict[str, Any]:
    """Return what became of a model at three sizes, as plain values."""
    from tests.models.resizing import can_be_resized, resized

    case = one.make()
    if not can_be_resized(case):
        return {"varies": "nothing: a cache is among its arguments"}
    sizes = _takes_sizes(case)
    options = Options.parse({"targets": "sm89", "cache_dir": cache})
    session, before = Session(options, "reference", True), singlecard.counters()

    def backend(graph: torch.fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(session, graph, given)

    torch._dynamo.reset()
    errors, mismatch = [], None
    compiled = torch.compile(fresh_call(case[0]), backend=backend)
    seen = 0
    with one.settings():
        for step in range(3):
            _, args, kwargs = resized(case, step, sizes)
            found = compare(compiled(*args, **kwargs), case[0](*args, **kwargs))
            errors.append(found.relative_l2)
            mismatch = mismatch or found.mismatch
            seen = seen or len(session.graphs)
    counted = singlecard.counters() - before
    varying = session.graphs[seen:]
    return {
        "varies": "batch and sizes" if sizes else "batch",
        "relative_l2": max(errors),
        "mismatch": mismatch,
        "graphs": len(session.graphs),
        "varying_engines": sum(
            bool(binding.profiles) for graph in varying for binding in graph.bindings
        ),
        "engines": sum(len(graph.engines) for graph in session.graphs),
        "build_failures": counted.build_failures,
        "fallback": sorted(
            {
                f"{item.op}: {item.reason.splitlines()[0]}"
                for graph in varying
                for item in graph.fallback
            }
        ),
        "seconds": {name: round(spent, 1) for name, spent in session.timings.items()},
    }


def _takes_sizes(case: Any) -> bool:
    """Tell whether a model takes other lengths or resolutions than those it is listed with."""
    from tests.models.resizing import resized

    try:
        for step in (1, 2):
            module, args, kwargs = resized(case, step)
            module(*args, **kwargs)
    except Exception:
        return False
    return True


def render_page(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    rows = [row for row in result["rows"] if "relative_l2" in row]
    right = [row for row in rows if row["mismatch"] is None and row["relative_l2"] < 1e-4]
    built = [row for row in rows if row["varying_engines"]]
    lines = [
        "# Architectures at further sizes",
        "",
        "Made by `python benchmarks/architecture_sizes.py`: one call as listed, two with further "
        "sizes, `dynamic=None`, default options, engines built for SM89, the reference answers.",
        "",
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".",
        "",
        f"{len(rows)} models called at three sizes, {len(right)} right at all of them; engines for "
        f"varying sizes in {len(built)}. {len(result['rows']) - len(rows)} more have a cache among "
        "their arguments, whose batch is its own.",
        "",
        "| model | varies | graphs | engines for varying sizes | builds that failed | error | "
        "left to PyTorch where sizes vary |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        left = "; ".join(row["fallback"]).replace("|", "\\|")
        error = row["mismatch"] or f"{row['relative_l2']:.1e}"
        lines.append(
            f"| {row['name']} | {row['varies']} | {row['graphs']} | {row['varying_engines']} | "
            f"{row['build_failures']} | {error} | {left} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Call whole models at further sizes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
    given = parser.parse_args()
    listed = load_architectures()
    unknown = sorted(set(given.names) - set(listed))
    if unknown:
        parser.error(f"no such architecture: {', '.join(unknown)}")
    file = RESULTS / "architecture_sizes.json"
    before = json.loads(file.read_text())["rows"] if given.names and file.exists() else []
    rows = {row["name"]: row for row in before if row["name"] in listed}
    with tempfile.TemporaryDirectory() as cache:
        for name in given.names or listed:
            try:
                row = measure_sizes(listed[name], cache)
            except Exception as error:  # a model that fails is a finding
                row = {"varies": "?", "mismatch": f"{type(error).__name__}: {error}"[:300]}
                row |= dict.fromkeys(("graphs", "varying_engines", "build_failures"), 0)
                row |= {"relative_l2": float("inf"), "fallback": []}
            rows[name] = {"name": name, **row}
            print(json.dumps(rows[name]), flush=True)
            ordered = [rows[item] for item in listed if item in rows]
            result = {"machine": describe_machine(), "rows": ordered}
            file.write_text(json.dumps(result, indent=1) + "\n")
            file.with_suffix(".md").write_text(render_page(result))


if __name__ == "__main__":
    main()
