"""How much memory building an engine takes, beside the weights of the model.

    python benchmarks/build_memory.py                 # 2 GB of FP16 weights; needs 8 GB of memory
    python benchmarks/build_memory.py --mapped fp32 --layers 56 --write      # one large model

Compiles a Llama-style decoder of 16 layers in a process of its own and prints the most memory that
the process held beyond what it held after importing everything, as a multiple of the weights'
bytes. The model itself is part of it: its weights are 1.0 of that multiple. Then the same decoder
with weights that are mapped from files of safetensors, in FP16 and in FP32: there, anonymous memory
is what counts, which only swap could take back. Writes ``results/build_memory.json`` and
``results/build_memory.md``; with ``--mapped`` and ``--write``, beside what is there, one model of
another size. Files of the model, of converted weights and of the plan go to ``--folder``, by
default the system's temporary folder: up to four times the model's weights in FP16.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from build_memory_page import LIMIT, render_page
from cases import TARGET
from checkpoint import decoder_config, write_checkpoint
from fresh_process import run_fresh
from machine import describe_machine

RESULTS = Path(__file__).parent / "results"
LAYERS = 16

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


def memory_now() -> dict[str, int]:
    """Return what this process holds, in bytes.

    ``VmRSS`` is everything and ``VmHWM`` the most of it; ``RssAnon`` is memory of no file,
    ``RssFile`` pages of files.
    """
    fields: dict[str, int] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM", "RssAnon", "RssFile"):
            fields[name] = int(value.split()[0]) * 1024
    return fields


def forget_peak() -> None:
    """Make ``VmHWM`` start again from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Samples this process's memory in the background, with the phase it is in."""

    def __init__(self, field: str) -> None:
        self.phase = "capture and lowering"
        self.peaks: dict[str, int] = {}
        self._field = field
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
            held = memory_now()[self._field]
            self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), held)

    def report(self, phase: str, step: int, steps: int) -> None:
        """Take the builder's progress; it is silent while it hands over the finished plan."""
        done = phase == "Building engine" and step == steps
        self.phase = "writing and checking the plan" if done else f"builder: {phase}"


def make_decoder(layers: int) -> torch.nn.Module:
    """Return a decoder in FP16, made in FP16: an FP32 copy would be a peak of its own."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    try:
        return LlamaForCausalLM(decoder_config(layers, torch.float16)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def load_decoder(folder: Path) -> torch.nn.Module:
    """Return a decoder whose weights are the files' own pages."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder, dtype="auto").eval()


def measure(make: Callable[[], torch.nn.Module], field: str, folder: Path | None) -> dict[str, Any]:
    """Build one decoder in this process; return its memory in bytes, as ``field`` counts it."""
    import singlecard
    from singlecard.options import Options
    from singlecard.report.arguments import arguments_of
    from singlecard.report.measure import run_compiled
    from singlecard.session import Session

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        options = {"precision": "fp16", "targets": (TARGET,), "cache_dir": cache}
        tiny = torch.nn.Linear(8, 8).eval()
        singlecard.verify(tiny, (torch.zeros(1, 8),), options=options)
        imported = memory_now()[field]

        model = make()
        weights = sum(weight.nbytes for weight in model.parameters())
        made = memory_now()[field]
        tokens = torch.randint(0, 8192, (1, 16))
        forget_peak()
        started = time.perf_counter()
        with Watch(field) as watch:
            session = Session(Options.parse(options), "eager", True, watch.report)
            run_compiled(session, arguments_of(model, (), {"input_ids": tokens}), {})
        seconds = time.perf_counter() - started
    engines = [engine for graph in session.graphs for engine in graph.engines]
    # The kernel keeps the peak of everything; of anonymous memory there are the samples.
    peak = memory_now()["VmHWM"] if field == "VmRSS" else max(watch.peaks.values())
    return {
        "layers": model.config.num_hidden_layers,
        "weights_bytes": weights,
        "imported_bytes": imported,
        "model_bytes": made - imported,
        "peak_bytes": peak - imported,
        "peaks_by_phase": {phase: held - imported for phase, held in watch.peaks.items()},
        "held_after_bytes": memory_now()[field] - imported,
        "engines": len(engines),
        "ops_left_out": sum(len(graph.fallback) for graph in session.graphs),
        "engine_bytes": sum(engine.report.engine_bytes for engine in engines),
        "seconds": seconds,
        "timings": session.timings,
    }


def measure_mapped(kind: str, layers: int, folder: Path | None) -> dict[str, Any]:
    """Write a decoder in FP16 or FP32 and build it in FP16, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as files:
        given = ("--layers", str(layers), "--files", files)
        run_fresh("build_memory.py", "--one", "write", "--mapped", kind, *given)
        place = ("--folder", str(folder)) if folder else ()
        return run_fresh("build_memory.py", "--one", "mapped", *given, *place)


def one(given: argparse.Namespace) -> dict[str, Any]:
    """Do one part of the work in this process."""
    if given.one == "write":
        write_checkpoint(given.files, given.layers, DTYPES[given.mapped])
        return {}
    if given.one == "mapped":
        return measure(lambda: load_decoder(given.files), "RssAnon", given.folder)
    return measure(lambda: make_decoder(given.layers), "VmRSS", given.folder)


def run_all(layers: int, folder: Path | None) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "target": TARGET,
        "limit": LIMIT,
        "run": run_fresh("build_memory.py", "--one", "held", "--layers", str(layers)),
        "mapped": {kind: measure_mapped(kind, layers, folder) for kind in DTYPES},
        "large": {},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the memory of a build.")
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer for a quick look")
    parser.add_argument("--mapped", choices=DTYPES, help="one model alone, mapped from such files")
    parser.add_argument("--write", action="store_true", help="add that model to the results")
    parser.add_argument("--folder", type=Path, help="where files go")
    parser.add_argument("--one", choices=("held", "write", "mapped"), help="in this process")
    parser.add_argument("--files", type=Path, help="the model's files, with --one")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given)))
        return
    page = RESULTS / "build_memory.json"
    if given.mapped:
        run = measure_mapped(given.mapped, given.layers, given.folder)
        print(json.dumps(run, indent=1))
        result = json.loads(page.read_text()) if given.write else {}
        result.setdefault("large", {})[f"{given.mapped}, {given.layers} layers"] = run
    else:
        result = run_all(given.layers, given.folder)
        print(render_page(result))
    if given.write if given.mapped else given.layers == LAYERS:
        RESULTS.mkdir(exist_ok=True)
        page.write_text(json.dumps(result, indent=1) + "\n")
        page.with_suffix(".md").write_text(render_page(result))


if __name__ == "__main__":
    main()
