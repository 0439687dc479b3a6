"""singlecard beside the ONNX route, on six models in FP32 and FP16, without a GPU.

    python benchmarks/foundation.py                   # about half an hour on 2 cores
    python benchmarks/foundation.py minilm --runs 1   # one model, printed and not written

Writes ``results/foundation.json`` and, to be read, ``results/foundation.md``. The two routes take
turns, each measurement in a process of its own; times are medians. The first run of singlecard
fills an engine cache, so the runs after it are warm starts.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from cases import MODELS, PRECISIONS, TARGET, Case, in_half, load_case
from foundation_page import render_page
from fresh_process import Clock, median_of, run_fresh
from machine import describe_machine
from peers import TORCH_TENSORRT_KERNELS, TORCH_TENSORRT_LOWERING, plan_figures

RESULTS = Path(__file__).parent / "results"

#: The stages between a model and a network, which the ONNX route's export and parsing stand beside.
TO_NETWORK = ("capture", "passes", "partition", "lowering")


def time_to_network(case: Case, precision: str) -> dict[str, float]:
    """Return the seconds of each stage, none of which builds or evaluates, and CPU seconds in all.

    All that the call takes beyond our own stages and the model's eager answer counts as capture:
    Dynamo, its guards and AOTAutograd.
    """
    from singlecard.options import Options
    from singlecard.report.arguments import arguments_of
    from singlecard.report.measure import run_compiled
    from singlecard.session import Session

    module, args, kwargs = case
    with torch.no_grad():
        module(*args, **kwargs)
        clock = Clock()
        module(*args, **kwargs)
        eager = clock.read()
    session = Session(Options.parse({"precision": precision}), "eager", build=False)
    clock = Clock()
    run_compiled(session, arguments_of(module, args, kwargs), {})
    total, cpu = (whole - part for whole, part in zip(clock.read(), eager, strict=True))
    stages = {stage: session.timings[stage] for stage in TO_NETWORK[1:]}
    return {"capture": total - sum(stages.values()), **stages, "cpu": cpu}


def measure_singlecard(model: str, precision: str, cache: str) -> dict[str, Any]:
    """Verify one model in this process; return coverage, errors, plan figures and times."""
    import singlecard

    tiny: Case = torch.nn.Linear(8, 8).eval(), (torch.zeros(1, 8),), {}
    time_to_network(tiny, precision)  # pays for the imports, as the peer's does
    case = load_case(model)
    stages = time_to_network(case, precision)
    options = {"precision": precision, "targets": (TARGET,), "cache_dir": cache}
    report = singlecard.verify(*case, options=options)
    half = plans_of_half(model, options) if precision == "fp16" else None
    return {
        "model": model,
        "precision": precision,
        "ops": report.ops,
        "ops_left_out": len(report.fallback),
        "fallback": report.fallback,
        "coverage": report.coverage,
        "built": report.built,
        "relative_l2": report.relative_l2,
        "max_abs_error": report.max_abs_error,
        "mismatch": report.mismatch,
        "stages": stages,
        "to_network_seconds": sum(stages[stage] for stage in TO_NETWORK),
        "to_network_cpu_seconds": stages["cpu"],
        "digest_seconds": report.timings["digest"],
        "build_seconds": report.timings["build"],
        "plans_of_half": half,
    } | plan_figures(report.plans)


def plans_of_half(model: str, options: dict[str, Any]) -> dict[str, int]:
    """Return the plan figures of ``model.half()``, the very model that the ONNX route exports.

    With ``precision="fp16"`` a model keeps its FP32 inputs and outputs, which move more bytes.
    """
    from singlecard.options import Options
    from singlecard.report.arguments import arguments_of
    from singlecard.report.measure import run_compiled
    from singlecard.session import Session

    session = Session(Options.parse(options), "eager", build=True)
    module, args, kwargs = in_half(load_case(model))
    run_compiled(session, arguments_of(module, args, kwargs), {})
    return plan_figures([engine.report for graph in session.graphs for engine in graph.engines])


def compare_routes(model: str, precision: str, runs: int) -> dict[str, Any]:
    """Measure both routes in turn; return the first run's figures with the medians of times."""
    ours, theirs = [], []
    arguments = ("--one", model, "--precision", precision)
    with tempfile.TemporaryDirectory() as cache:
        for run in range(runs):
            ours.append(run_fresh("foundation.py", *arguments, "--cache", cache))
            more = ("--no-build",) if run else ()
            theirs.append(run_fresh("peers.py", *arguments, *more))
        warm = ours[1:] or [run_fresh("foundation.py", *arguments, "--cache", cache)]
    stages = {stage: median_of([run["stages"] for run in ours], stage) for stage in TO_NETWORK}
    times = {key: median_of(ours, key) for key in ("to_network_seconds", "to_network_cpu_seconds")}
    steps = ("export_seconds", "save_seconds", "parse_seconds", "to_network_cpu_seconds")
    peer = {step: median_of(theirs, step) for step in steps}
    peer["to_network_seconds"] = peer["export_seconds"] + peer["parse_seconds"]
    return {
        "model": model,
        "precision": precision,
        "runs": runs,
        "singlecard": ours[0] | {"stages": stages} | times,
        "warm_start": {
            "built": max(run["built"] for run in warm),
            "build_seconds": median_of(warm, "build_seconds"),
            "digest_seconds": median_of(warm, "digest_seconds"),
        },
        "onnx_route": theirs[0] | peer,
        "time_ratio": times["to_network_seconds"] / peer["to_network_seconds"],
        "cpu_ratio": times["to_network_cpu_seconds"] / peer["to_network_cpu_seconds"],
        "torch_tensorrt_kernels_cited": (
            TORCH_TENSORRT_KERNELS.get(model) if precision == "fp16" else None
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure singlecard beside the ONNX route.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--runs", type=int, default=3, help="medians of times over this many")
    parser.add_argument("--one", action="store_true", help="one model, in this process, as JSON")
    parser.add_argument("--cache", help="with --one: folder of built engines")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure_singlecard(given.models[0], given.precision[0], given.cache)))
        return
    rows = []
    for precision in given.precision:
        for model in given.models or MODELS:
            rows.append(compare_routes(model, precision, given.runs))
            ours, peer = rows[-1]["singlecard"], rows[-1]["onnx_route"]
            print(
                f"{model} {precision}: {ours['engines']} engine(s), {ours['ops_left_out']} ops "
                f"left out, {ours['kernels']} kernels (ONNX route {peer['kernels']}), error "
                f"{ours['relative_l2']:.1e}, to network {ours['to_network_seconds']:.2f} s "
                f"({peer['to_network_seconds']:.2f} s)",
                flush=True,
            )
            for op, reason in ours["fallback"]:
                print(f"  {op}: {reason}", flush=True)
    result = {
        "machine": describe_machine(),
        "target": TARGET,
        "torch_tensorrt_lowering_seconds_cited": TORCH_TENSORRT_LOWERING,
        "rows": rows,
    }
    if given.models or len(given.precision) < len(PRECISIONS):
        print(render_page(result))
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "foundation.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "foundation.md").write_text(render_page(result))


if __name__ == "__main__":
    main()
