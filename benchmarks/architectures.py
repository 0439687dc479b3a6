"""Whole models beside the ONNX route: coverage, error, and time from model to network.

    python benchmarks/architectures.py                       # all: about half an hour on 2 cores
    python benchmarks/architectures.py bert llama --runs 3   # these; the other results stay

The models are those of ``tests/models/architectures.py``. Writes ``results/architectures.json``
and, to be read, ``results/architectures.md``. The two routes take turns in one process, in which
both have taken other models before; times are CPU seconds, the best of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from architectures_page import render_page
from foundation import time_to_network
from machine import describe_machine
from peers import export_and_parse

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

#: Models that both routes take before any is timed: a CNN, an encoder and a decoder.
FIRST = ("resnet", "bert", "llama")


def load_architectures() -> dict[str, Any]:
    """Return the list of tests/models/architectures.py, by name."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tests.models.architectures import ARCHITECTURES

    return ARCHITECTURES


def time_singlecard(one: Any) -> float:
    """Return the CPU seconds that singlecard takes from model to network."""
    torch._dynamo.reset()
    with one.settings():
        return time_to_network(one.make(), "fp32")["cpu"]


def time_onnx_route(one: Any) -> float:
    """Return the CPU seconds of export and parsing; saving the file between them is left out."""
    from singlecard.network.net import Net

    torch._dynamo.reset()
    return export_and_parse(one.make(), Net())["to_network_cpu_seconds"]


def verify_architecture(one: Any) -> dict[str, Any]:
    """Return what `singlecard.verify` finds, as plain values."""
    import singlecard

    torch._dynamo.reset()
    case = one.make()
    with one.settings():
        # Sizes are small: every engine stands for one that is worth its call.
        report = singlecard.verify(*case, options={"min_block_size": 1})
    config = getattr(case[0], "config", None)
    return {
        "family": one.family,
        "scalars": one.scalars,
        "model_type": getattr(config, "model_type", one.model),
        "kind": type(case[0]).__name__,
        "parameters": sum(weight.numel() for weight in case[0].parameters()),
        "ops": report.ops,
        "coverage": report.coverage,
        # Further lines of a reason are a traceback.
        "fallback": sorted({(op, reason.splitlines()[0]) for op, reason in report.fallback}),
        "left_out": len(report.fallback),
        "engines": report.engines,
        "kernels": sum(plan.kernel_count for plan in report.plans),
        "relative_l2": report.relative_l2,
        "mismatch": report.mismatch,
    }


def work(names: list[str], runs: int) -> None:
    """Measure architectures in this process; print one JSON object for each finding."""
    listed = load_architectures()

    def tell(name: str, **finding: Any) -> None:
        print(json.dumps({"name": name} | finding), flush=True)

    for first in FIRST:
        time_singlecard(listed[first])
        time_onnx_route(listed[first])
    for name in names:
        tell(name, **verify_architecture(listed[name]))
        for _ in range(runs):
            tell(name, singlecard_cpu_seconds=time_singlecard(listed[name]))
            tell(name, onnx_route="began")
            try:
                tell(name, onnx_route=None, onnx_cpu_seconds=time_onnx_route(listed[name]))
            except Exception as error:
                text = f"{type(error).__name__}: {error}"
                tell(name, onnx_route=_brief(text))
                break


def _brief(text: str) -> str:
    """Return the sentences of an error that say what happened, without a traceback."""
    plain = re.sub(r"\x1b\[\d+m", "", text)  # colours
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("<class", "Caused by"))] or lines[:1]
    return " ".join([lines[0], *causes[:2]] if causes[0] != lines[0] else causes)[:300]


def measure(names: list[str], runs: int) -> Iterator[dict[str, Any]]:
    """Measure architectures in other processes, a new one behind each that TensorRT's parser ends.

    Yields:
        one row for each architecture.
    """
    while names:
        row: dict[str, Any] = {}
        for finding in _findings(names, runs):
            if row and finding["name"] != row["name"]:
                yield _finished(row)
                row = {}
            for key, value in finding.items():
                if key in row and key.endswith("_seconds"):
                    value = min(value, row[key])
                row[key] = value
        if not row:
            raise RuntimeError("the measuring process ended before its first finding")
        yield _finished(row)
        names = names[names.index(row["name"]) + 1 :]


def _findings(names: list[str], runs: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, __file__, "--work", "--runs", str(runs), *names]
    with tempfile.TemporaryDirectory() as cache:
        # Several threads of torch's only wait for each other when the machine does other work too.
        own = {"OMP_NUM_THREADS": "1", "SINGLECARD_CACHE": cache}
        with subprocess.Popen(
            command,
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)


def _finished(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("onnx_route") == "began":
        row["onnx_route"] = "the process was ended by a crash inside TensorRT's parser"
    ours, theirs = row.get("singlecard_cpu_seconds"), row.get("onnx_cpu_seconds")
    return row | {"cpu_ratio": ours / theirs if ours and theirs else None}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure whole models beside the ONNX route.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
    parser.add_argument("--runs", type=int, default=2, help="times are the best of this many")
    parser.add_argument("--work", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    listed = load_architectures()
    unknown = sorted(set(given.names) - set(listed))
    if unknown:
        parser.error(f"no such architecture: {', '.join(unknown)}")
    names = given.names or list(listed)
    if given.work:
        work(names, given.runs)
        return
    file = RESULTS / "architectures.json"
    before = json.loads(file.read_text())["rows"] if given.names and file.exists() else []
    rows = {row["name"]: row for row in before if row["name"] in listed}
    for row in measure(names, given.runs):
        row["runs"] = given.runs
        rows[row["name"]] = row
        ratio = f"ratio {row['cpu_ratio']:.2f}" if row["cpu_ratio"] else row.get("onnx_route")
        print(
            f"{row['name']}: {row['left_out']} of {row['ops']} ops left out, {row['engines']} "
            f"engine(s), error {row['relative_l2']:.1e}, {ratio}",
            flush=True,
        )
        ordered = [rows[name] for name in listed if name in rows]
        result = {"machine": describe_machine(), "rows": ordered}
        file.write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "architectures.md").write_text(render_page(result))


if __name__ == "__main__":
    main()
