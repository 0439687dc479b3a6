"""Whole models whose sizes change: one call as they are listed, two with further sizes.

    python benchmarks/architecture_sizes.py                # all: some hours on one core
    python benchmarks/architecture_sizes.py bert swin      # these; the other results stay
    python benchmarks/architecture_sizes.py --limit 300    # CPU seconds that one model may take

The models are those of ``tests/models/architectures.py``. Each is compiled with ``dynamic=None``
and default options, PyTorch's too, and called in turn; the batch changes, and with it the length or
the resolution where the model takes another. Engines are really built, for SM89, and the reference
answers. Writes ``results/architecture_sizes.json`` and, to be read, ``architecture_sizes.md``.

Models are measured in another process, a new one behind each that crashes it or takes longer than
the limit. What has been measured by then stays.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from architectures import RESULTS, load_architectures
from machine import describe_machine
from torch.utils import _pytree as pytree

import singlecard
from singlecard.backend import compile_in
from singlecard.capture.symbols import symbols_in
from singlecard.options import Options
from singlecard.report.arguments import copied
from singlecard.report.measure import fresh_call
from singlecard.report.verify import compare
from singlecard.session import Session

#: Largest relative L2 error of an answer that counts as right, in FP32.
RIGHT = 1e-4


@torch.no_grad()
def measure_sizes(one: Any, cache: str, tell: Callable[[int], None]) -> dict[str, Any]:
    """Return what became of a model at three sizes, as plain values.

    Args:
        one: the model.
        cache: folder of engines.
        tell: called with the number of each call before it is made.
    """
    from tests.models.resizing import resized

    case = one.make()
    sizes = _takes_sizes(case)
    options = Options.parse({"targets": "sm89", "cache_dir": cache})
    session, before = Session(options, "reference", True), singlecard.counters()

    symbolic: list[bool] = []  # of each graph whose sizes vary: has it an engine for them?

    def backend(graph: torch.fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        place = len(session.graphs)
        compiled = compile_in(session, graph, given)
        made = session.graphs[place:]
        if any(symbols_in(given)) and any(item.bindings or item.fallback for item in made):
            bindings = [binding for item in made for binding in item.bindings]
            left = any(item.fallback for item in made)
            symbolic.append(any(binding.profiles for binding in bindings) or not left)
        return compiled

    torch._dynamo.reset()
    errors, mismatch, seen = [], None, 0
    compiled = torch.compile(fresh_call(case[0]), backend=backend)
    for step in range(3):
        tell(step + 1)
        module, args, kwargs = resized(case, step, sizes)
        # A cache is written to: each of the two has its own.
        torch.manual_seed(step)  # ViLT draws the patches that it looks at
        expected = module(*copied(args), **copied(kwargs))
        args, kwargs = copied((args, kwargs))
        torch.manual_seed(step)
        found = compare(compiled(*args, **kwargs), expected)
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
        "symbolic_graphs": len(symbolic),
        "served_graphs": sum(symbolic),
        "engines": sum(len(graph.engines) for graph in session.graphs),
        "varying_engines": sum(
            bool(binding.profiles) for graph in varying for binding in graph.bindings
        ),
        "evaluations": counted.evaluations,
        "fallback_calls": counted.fallback_calls,
        "build_failures": counted.build_failures,
        "fallback": sorted(
            {
                f"{item.op}: {item.reason.splitlines()[0]}"
                for graph in varying
                for item in graph.fallback
            }
        ),
    }


@torch.no_grad()
def _pytorch_fails(one: Any) -> bool:
    """Tell whether PyTorch cannot capture a model at three sizes for any backend."""
    from tests.models.resizing import resized

    torch._dynamo.reset()
    case = one.make()
    compiled, sizes = torch.compile(case[0], backend="eager"), _takes_sizes(case)
    try:
        for step in range(3):
            _, args, kwargs = resized(case, step, sizes)
            compiled(*copied(args), **copied(kwargs))
    except Exception:
        return True
    return False


def _takes_sizes(case: Any) -> bool:
    """Tell whether a model takes other lengths or resolutions than those it is listed with."""
    from tests.models.resizing import resized

    try:
        for step in (1, 2):
            module, args, kwargs = resized(case, step)
            module(*copied(args), **copied(kwargs))
    except Exception:
        return False
    batch_alone = resized(case, 1, sizes=False)
    return _shapes(resized(case, 1)[1:]) != _shapes(batch_alone[1:])


def _shapes(values: Any) -> list[Any]:
    return [getattr(item, "shape", None) for item in pytree.tree_leaves(values)]


def work(names: Sequence[str], cache: str, limit: int) -> None:
    """Measure models in this process; print a JSON object before each call, and for each model.

    The system ends the process when a model takes more CPU seconds than the limit.
    """
    listed = load_architectures()
    for name in names:

        def tell(call: int, name: str = name) -> None:
            print(json.dumps({"name": name, "call": call}), flush=True)

        end = math.ceil(time.process_time()) + limit
        resource.setrlimit(resource.RLIMIT_CPU, (end, resource.RLIM_INFINITY))
        tell(0)
        try:
            row = measure_sizes(listed[name], cache, tell)
        except Exception as error:  # a model that fails is a finding
            who = "PyTorch, with backend='eager' too" if _pytorch_fails(listed[name]) else "here"
            row = {"mismatch": f"{who}: {type(error).__name__}: {error}"[:300]}
        print(json.dumps({"name": name, "row": row}), flush=True)


def measure(names: Sequence[str], limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure models in other processes; yield the name and the row of each.

    Args:
        names: of the models.
        limit: CPU seconds that one may take. Other work on the machine does not count.

    Raises:
        RuntimeError: the measuring process does not start.
    """
    left = list(names)
    with tempfile.TemporaryDirectory() as cache:
        while left:
            for name, row in _measured(tuple(left), cache, limit):
                left.remove(name)
                yield name, row


def _measured(names: Sequence[str], cache: str, limit: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows until a model ends the process, with a row for that one."""
    command = [sys.executable, __file__, "--work", cache, "--limit", str(limit), *names]
    # Several threads of torch's only wait for each other when the machine does other work too.
    with subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        last: dict[str, Any] = {}
        for line in process.stdout:
            if line.startswith("{"):
                last = json.loads(line)
                if "row" in last:
                    yield last["name"], last["row"]
        if not last:
            raise RuntimeError("the measuring process ended before its first model")
        if "row" not in last:
            too_long = process.wait() == -signal.SIGXCPU
            how = f"had not ended after {limit} CPU seconds" if too_long else "ended the process"
            yield last["name"], {"mismatch": f"call {last['call']} {how}"}


def render_page(result: dict[str, Any]) -> str:
    """Return the results as a page."""
    rows = [row for row in result["rows"] if "relative_l2" in row]
    failed = [row for row in result["rows"] if "relative_l2" not in row]
    right = [row for row in rows if row["mismatch"] is None and row["relative_l2"] < RIGHT]
    symbolic = [row for row in rows if row["symbolic_graphs"]]
    served = [row for row in symbolic if row["served_graphs"]]
    whole = [row for row in symbolic if row["served_graphs"] == row["symbolic_graphs"]]
    lines = [
        "# Architectures at further sizes",
        "",
        "Made by `python benchmarks/architecture_sizes.py`: one call as listed, two with further "
        "sizes, `dynamic=None`, default options, engines built for SM89, the reference answers.",
        "",
        ", ".join(f"{name} {value}" for name, value in result["machine"].items()) + ".",
        "",
        f"{len(rows)} of {len(result['rows'])} models called at three sizes, {len(right)} right at "
        f"all of them. PyTorch keeps sizes of {len(symbolic)} symbolic: {len(served)} of these "
        f"have engines for sizes that vary, {len(whole)} in every graph with such sizes.",
        "",
        "Sizes at which PyTorch kept none symbolic are those of a graph of their own, with engines "
        "for these sizes.",
        "",
        "| model | varies | graphs | of them symbolic | of these with engines | engines | for "
        "sizes that vary | calls that PyTorch answered | builds that failed | error | left to "
        "PyTorch where sizes vary |",
        "|" + " --- |" * 11,
    ]
    for row in rows:
        left = "; ".join(row["fallback"]).replace("|", "\\|")
        error = row["mismatch"] or f"{row['relative_l2']:.1e}"
        counts = (
            "graphs",
            "symbolic_graphs",
            "served_graphs",
            "engines",
            "varying_engines",
            "fallback_calls",
            "build_failures",
        )
        values = [row["name"], row["varies"], *(row[name] for name in counts), error]
        lines.append(f"| {' | '.join(map(str, [*values, left]))} |")
    if failed:
        lines += ["", "Without an answer:", ""]
        lines += [f"- {row['name']}: {row['mismatch']}" for row in failed]
    measured = {row["name"] for row in result["rows"]}
    missing = [name for name in load_architectures() if name not in measured]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Call whole models at further sizes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
    parser.add_argument("--limit", type=int, default=600, help="CPU seconds that a model may take")
    parser.add_argument("--work", metavar="CACHE", help="in this process, as JSON")
    given = parser.parse_args()
    listed = load_architectures()
    unknown = sorted(set(given.names) - set(listed))
    if unknown:
        parser.error(f"no such architecture: {', '.join(unknown)}")
    if given.work:
        work(given.names, given.work, given.limit)
        return
    file = RESULTS / "architecture_sizes.json"
    before = json.loads(file.read_text())["rows"] if given.names and file.exists() else []
    rows = {row["name"]: row for row in before if row["name"] in listed}
    for name, row in measure(given.names or list(listed), given.limit):
        rows[name] = {"name": name, **row}
        print(json.dumps(rows[name]), flush=True)
        ordered = [rows[item] for item in listed if item in rows]
        result = {"machine": describe_machine(), "rows": ordered}
        file.write_text(json.dumps(result, indent=1) + "\n")
        file.with_suffix(".md").write_text(render_page(result))


if __name__ == "__main__":
    main()
