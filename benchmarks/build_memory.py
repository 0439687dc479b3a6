"""How much memory building an engine takes, beside the weights of the model.

    python benchmarks/build_memory.py                 # 2 GB of FP16 weights; needs 8 GB of memory

Compiles a Llama-style decoder of 16 layers in a process of its own and prints the most memory that
the process held beyond what it held after importing everything, as a multiple of the weights'
bytes. The model itself is part of it: its weights are 1.0 of that multiple. Writes
``results/build_memory.json`` and ``results/build_memory.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from cases import TARGET
from fresh_process import run_fresh
from machine import describe_machine

RESULTS = Path(__file__).parent / "results"

#: The most that a build may hold, as a multiple of the weights' bytes.
LIMIT = 2.8


def memory_now() -> dict[str, int]:
    """Return the bytes that this process holds, ``VmRSS``, and the most it held, ``VmHWM``."""
    fields: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            fields[name] = int(value.split()[0]) * 1024
    return fields


def forget_peak() -> None:
    """Make ``VmHWM`` start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Samples this process's memory in the background, with the phase it is in."""

    def __init__(self) -> None:
        self.phase = "capture and lowering"
        self.peaks: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.02):
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), memory_now()["VmRSS"])

    def report(self, phase: str, step: int, steps: int) -> None:
        """Take the builder's progress; it is silent while it hands over the finished plan."""
        done = phase == "Building engine" and step == steps
        self.phase = "writing and checking the plan" if done else f"builder: {phase}"


def make_decoder(layers: int) -> torch.nn.Module:
    """Return a decoder in FP16, made in FP16: an FP32 copy would be a peak of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=8192,
        use_cache=False,
        attn_implementation="sdpa",
        dtype=torch.float16,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def measure(layers: int) -> dict[str, Any]:
    """Build one decoder in this process; return its memory in bytes."""
    import singlecard
    from singlecard.options import Options
    from singlecard.report.measure import run_compiled
    from singlecard.session import Session

    with tempfile.TemporaryDirectory() as cache:
        options = {"precision": "fp16", "targets": (TARGET,), "cache_dir": cache}
        tiny = torch.nn.Linear(8, 8).eval()
        singlecard.verify(tiny, (torch.zeros(1, 8),), options=options)
        imported = memory_now()["VmRSS"]

        model = make_decoder(layers)
        weights = sum(weight.nbytes for weight in model.parameters())
        made = memory_now()["VmRSS"]
        tokens = torch.randint(0, 8192, (1, 16))
        forget_peak()
        started = time.perf_counter()
        with Watch() as watch:
            session = Session(Options.parse(options), "eager", True, watch.report)
            run_compiled(session, model, (), {"input_ids": tokens})
        seconds = time.perf_counter() - started
    engines = [engine for graph in session.graphs for engine in graph.engines]
    return {
        "layers": layers,
        "weights_bytes": weights,
        "imported_bytes": imported,
        "model_bytes": made - imported,
        "peak_bytes": memory_now()["VmHWM"] - imported,
        "peaks_by_phase": {phase: held - imported for phase, held in watch.peaks.items()},
        "held_after_bytes": memory_now()["VmRSS"] - imported,
        "engines": len(engines),
        "ops_left_out": sum(len(graph.fallback) for graph in session.graphs),
        "engine_bytes": sum(engine.report.engine_bytes for engine in engines),
        "seconds": seconds,
        "timings": session.timings,
    }


def render_page(result: dict[str, Any]) -> str:
    """Return ``build_memory.md``."""
    run, weights = result["run"], result["run"]["weights_bytes"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())

    def row(what: str, held: int) -> str:
        return f"| {what} | {held / 1e9:.2f} | {held / weights:.2f} |"

    lines = [
        "# Memory of a build",
        "",
        f"Written by `python benchmarks/build_memory.py`. Machine: {machine}.",
        "",
        f"A Llama-style decoder of {run['layers']} layers, {weights / 1e9:.2f} GB of FP16 weights, "
        f"built for {TARGET.upper()} in {run['seconds']:.0f} s: {run['engines']} engine, "
        f"{run['ops_left_out']} ops left out, a plan of {run['engine_bytes'] / 1e9:.2f} GB. Memory "
        f"held beyond what importing takes ({run['imported_bytes'] / 1e9:.2f} GB), in GB and as a "
        f"multiple of the weights. The limit for the peak is {LIMIT}.",
        "",
        "| what | GB | x weights |",
        "| --- | ---: | ---: |",
        row("the model, before", run["model_bytes"]),
        *(row(f"most in: {name}", peak) for name, peak in run["peaks_by_phase"].items()),
        row("after the build", run["held_after_bytes"]),
        row("**peak**", run["peak_bytes"]),
        "",
        "What the peak is made of: the model's own weights (1.0: the network's constants point at "
        "them), the finished plan, which the builder keeps whole until its last piece is in the "
        "file (1.0), and its copies of the weights that it merges: q, k and v, gate and up (0.7 of "
        "this model). Nothing of ours stands beside these three. A chain of plain linear layers, "
        "where nothing is merged, was seen to peak at 2.3.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of a build.")
    parser.add_argument("--layers", type=int, default=16, help="fewer for a quick look")
    parser.add_argument("--one", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.layers)))
        return
    run = run_fresh("build_memory.py", "--one", "--layers", str(given.layers))
    result = {"machine": describe_machine(), "target": TARGET, "limit": LIMIT, "run": run}
    print(render_page(result))
    if given.layers == parser.get_default("layers"):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "build_memory.json").write_text(json.dumps(result, indent=1) + "\n")
        (RESULTS / "build_memory.md").write_text(render_page(result))


if __name__ == "__main__":
    main()
