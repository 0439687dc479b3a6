"""From the first call to a ready engine: cold, warm, and beside the ONNX route; no GPU needed.

    python benchmarks/start.py                    # all models, medians of three: about 20 minutes
    python benchmarks/start.py bert_base --runs 1 # one model, printed and not written

Each measurement has a process of its own, in which a tiny model went the same way before, so that
imports are paid for. *Ready* means: the plan is in the cache, and its checksum was taken. What
loading it onto a card takes is not in these figures, nor the call itself.

*Reading* is the time to read the model's weights and the engine from files that the page cache
holds, into memory, by one thread: the floor that a warm start is held against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cases import MODELS, TARGET, Case, load_case
from fresh_process import Clock, median_of, run_fresh
from machine import describe_machine
from start_page import render_page

RESULTS = Path(__file__).parent / "results"

#: Models whose warm start is measured; the six of `cases` have their cold path compared.
WARM = ("resnet50", "bert_base", "decoder")

PRECISION = "fp16"


def decoder() -> Case:
    """Return a Llama-style decoder with 1.07 GB of seeded random FP32 weights, and a prompt."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1536,
        intermediate_size=4096,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=32_000,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
        tokens = torch.randint(1, config.vocab_size, (1, 32))
    return model, (), {"input_ids": tokens}


def case_of(model: str) -> Case:
    return decoder() if model == "decoder" else load_case(model)


def start(case: Case, cache: str) -> dict[str, float]:
    """Compile a model as `torch.compile` does at its first call; return seconds by part."""
    from singlecard.backend import compile_graph

    options = {"precision": PRECISION, "targets": (TARGET,), "cache_dir": cache}
    times: dict[str, float] = {}
    clock = Clock()

    def backend(graph: Any, examples: Any) -> Any:
        times["dynamo"] = times.get("dynamo") or clock.read()[0]
        began = time.perf_counter()
        result = compile_graph(graph, examples, options={**options, "execution": "eager"})
        times["backend"] = times.get("backend", 0.0) + time.perf_counter() - began
        times["ready"] = clock.read()[0]
        return result

    module, args, kwargs = case
    with torch.no_grad():
        torch.compile(module, backend=backend)(*args, **kwargs)
    return times


def measure_start(model: str, cache: str) -> dict[str, Any]:
    tiny: Case = torch.nn.Linear(8, 8).eval(), (torch.zeros(1, 8),), {}
    start(tiny, cache)
    torch._dynamo.reset()
    case = case_of(model)
    with torch.no_grad():
        case[0](*case[1], **case[2])
    return start(case, cache)


def measure_reading(model: str, cache: str) -> dict[str, float]:
    """Read weights and the largest plan of a cache, from the page cache into memory."""
    module = case_of(model)[0]
    tensors = [item.detach().contiguous() for item in module.state_dict().values()]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights"
        with weights.open("wb") as file:
            for item in tensors:
                file.write(item.reshape(-1).view(torch.uint8).numpy().data)
        del tensors, module
        plan = max(Path(cache).rglob("engine.plan"), key=lambda path: path.stat().st_size)
        buffers = {path: bytearray(path.stat().st_size) for path in (weights, plan)}
        for _ in range(2):  # the first time pays for the buffers' pages
            clock = Clock()
            for path, buffer in buffers.items():
                with path.open("rb", buffering=0) as file:
                    view = memoryview(buffer)
                    while view:
                        view = view[file.readinto(view) :]
            seconds = clock.read()[0]
        sizes = {path.name: len(buffer) for path, buffer in buffers.items()}
    return {"reading": seconds, "weights_bytes": sizes["weights"], "plan_bytes": sizes[plan.name]}


def measure_load(model: str, file: str) -> dict[str, float]:
    """Write an artifact where there is none; then load it, and return the seconds."""
    import singlecard

    tiny = f"{file}.tiny"
    options = {"precision": PRECISION, "targets": (TARGET,), "cache_dir": f"{file}.cache"}
    if not Path(file).exists():
        singlecard.export(
            torch.nn.Linear(8, 8).eval(), (torch.zeros(1, 8),), {}, tiny, options=options
        )
        singlecard.export(*case_of(model), file, options=options)
        return {}
    importlib.import_module("transformers.modeling_outputs")  # classes of answers
    singlecard.load(tiny).check()
    clock = Clock()
    singlecard.load(file).check()
    return {"load": clock.read()[0]}


def compare(model: str, runs: int) -> dict[str, Any]:
    """Return medians for one model: cold, warm, reading, loading, and the peer's cold path."""
    cold, warm, peers, reads, loads = [], [], [], [], []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            cache, file = f"{folder}/cache", f"{folder}/model.singlecard"
            cold.append(run_fresh("start.py", "--one", model, "--cache", cache))
            if model != "decoder":
                peers.append(run_fresh("peers.py", "--one", model, "--precision", PRECISION))
            if model in WARM:
                warm.append(run_fresh("start.py", "--one", model, "--cache", cache))
                reads.append(run_fresh("start.py", "--read", model, "--cache", cache))
                run_fresh("start.py", "--load", model, "--cache", file)
                loads.append(run_fresh("start.py", "--load", model, "--cache", file))
    parts = ("dynamo", "backend", "ready")
    row: dict[str, Any] = {
        "model": model,
        "runs": runs,
        "cold": {part: median_of(cold, part) for part in parts},
    }
    if peers:
        steps = ("export_seconds", "parse_seconds", "build_seconds")
        row["peer"] = {step: median_of(peers, step) for step in steps}
    if warm:
        row["warm"] = {part: median_of(warm, part) for part in parts}
        row["reading"] = {**reads[0], "reading": median_of(reads, "reading")}
        row["load"] = median_of(loads, "load")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the way to a ready engine.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join((*MODELS, "decoder")))
    parser.add_argument("--runs", type=int, default=3, help="medians over this many")
    for flag, words in (
        ("--one", "a start, in this process, as JSON"),
        ("--read", "reading files, in this process, as JSON"),
        ("--load", "an artifact, written or loaded in this process, as JSON"),
    ):
        parser.add_argument(flag, metavar="MODEL", help=words)
    parser.add_argument("--cache", help="with these: the folder of engines, or the artifact")
    given = parser.parse_args()
    for name, measure in (
        (given.one, measure_start),
        (given.read, measure_reading),
        (given.load, measure_load),
    ):
        if name:
            print(json.dumps(measure(name, given.cache)))
            return
    rows = []
    for model in given.models or (*MODELS, "decoder"):
        rows.append(compare(model, given.runs))
        print(json.dumps(rows[-1]), flush=True)
    result = {"machine": describe_machine(), "target": TARGET, "rows": rows}
    page = render_page(result)
    if given.models:
        print(page)
        return
    (RESULTS / "start.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "start.md").write_text(page)


if __name__ == "__main__":
    main()
