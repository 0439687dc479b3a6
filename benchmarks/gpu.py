"""Six models on the card at hand: latency, host time, memory and accuracy, beside the peers.

    python benchmarks/gpu.py                                # all models, all ways
    python benchmarks/gpu.py resnet50 --ways eager inductor --out results/gpu.json

Each way of running a model has a process of its own. Latency is the median of CUDA events around
single calls; host time is the median of what a call takes before it returns, with nothing waited
for; memory is PyTorch's own count of what it allocated, for the model and at the peak of a call.
Accuracy is relative L2 against eager FP32 on the same card. A way that does not run is listed with
its own words, as not run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cases import MODELS, Case, load_case
from machine import describe_machine
from torch.utils import _pytree as pytree

RESULTS = Path(__file__).parent / "results" / "gpu.json"

#: Calls before anything is measured, and calls that are measured.
WARM_UP, CALLS = 20, 100

DTYPE = torch.float16


def eager(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    return module.to(DTYPE)


def inductor(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    return torch.compile(module.to(DTYPE))  # type: ignore[no-any-return]


def max_autotune(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    return torch.compile(module.to(DTYPE), mode="max-autotune")  # type: ignore[no-any-return]


def singlecard(module: torch.nn.Module, folder: str, **more: Any) -> Callable[..., Any]:
    options = {"precision": "fp16", "cache_dir": folder, "execution": "engine", **more}
    return torch.compile(module, backend="singlecard", options=options)  # type: ignore[no-any-return]


def singlecard_graphs(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    return singlecard(module, folder, cuda_graphs=True)


def singlecard_offloaded(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    return singlecard(module, folder, offload_weights=True)


def singlecard_as_it_comes(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    """What a user gets on any card: engines where they run, else TorchInductor."""
    options = {"precision": "fp16", "cache_dir": folder, "fallback": "inductor"}
    return torch.compile(  # type: ignore[no-any-return]
        module.to(DTYPE), backend="singlecard", options=options
    )


def torch_tensorrt(module: torch.nn.Module, folder: str) -> Callable[..., Any]:
    import torch_tensorrt  # noqa: F401  # registers the backend

    return torch.compile(module.to(DTYPE), backend="torch_tensorrt")  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[torch.nn.Module, str], Callable[..., Any]]] = {
    "eager": eager,
    "inductor": inductor,
    "inductor, max-autotune": max_autotune,
    "singlecard": singlecard,
    "singlecard, cuda_graphs": singlecard_graphs,
    "singlecard, offload_weights": singlecard_offloaded,
    'singlecard, fallback="inductor"': singlecard_as_it_comes,
    "Torch-TensorRT": torch_tensorrt,
}


def on_card(case: Case) -> Case:
    module, args, kwargs = case
    moved = pytree.tree_map_only(torch.Tensor, lambda item: item.cuda(), (args, kwargs))
    return module.cuda(), *moved


def in_type(values: Any, dtype: torch.dtype) -> Any:
    return pytree.tree_map_only(
        torch.Tensor, lambda item: item.to(dtype) if item.is_floating_point() else item, values
    )


def measure(model: str, way: str) -> dict[str, Any]:
    """Return the figures of one way to run one model, in this process."""
    module, args, kwargs = on_card(load_case(model))
    with torch.inference_mode():
        expected = pytree.tree_leaves(module(*args, **kwargs))
        expected = [item.float().cpu() for item in expected if isinstance(item, torch.Tensor)]
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            call = WAYS[way](module, folder)
            if next(module.parameters()).dtype == DTYPE:
                args, kwargs = in_type((args, kwargs), DTYPE)
            got = pytree.tree_leaves(call(*args, **kwargs))
            torch.cuda.synchronize()
            first = time.perf_counter() - started
            error = relative_l2(got, expected)
            del got
            figures = timed(lambda: call(*args, **kwargs))
    free, total = torch.cuda.mem_get_info()
    return {
        "first_call_seconds": first,
        "relative_l2": error,
        "used_bytes": total - free,
        **figures,
    }


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Return medians over single calls, and the memory that a call takes at its peak."""
    for _ in range(WARM_UP):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    latencies, hosts = [], []
    for _ in range(CALLS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        started = time.perf_counter()
        call()
        hosts.append(time.perf_counter() - started)
        end.record()
        end.synchronize()
        latencies.append(begin.elapsed_time(end))
    return {
        "latency_ms": median(latencies),
        "host_us": median(hosts) * 1e6,
        "model_bytes": before,
        "call_bytes": torch.cuda.max_memory_allocated() - before,
    }


def relative_l2(got: list[Any], expected: list[torch.Tensor]) -> float:
    squares = norm = 0.0
    tensors = [item.float().cpu() for item in got if isinstance(item, torch.Tensor)]
    for a, b in zip(tensors, expected, strict=True):
        squares += float((a.double() - b.double()).square().sum())
        norm += float(b.double().square().sum())
    return float((squares / norm) ** 0.5)


def apart(model: str, way: str, seconds: int) -> dict[str, Any]:
    """Measure in a process of its own; what goes wrong there is the result."""
    command = [sys.executable, __file__, "--one", model, way]
    row: dict[str, Any] = {"model": model, "way": way}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=dict(os.environ)
        )
    except subprocess.TimeoutExpired:
        return row | {"not_run": f"not done after {seconds} s"}
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return row | {"not_run": lines[-1] if lines else f"exit status {done.returncode}"}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def render_page(result: dict[str, Any]) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [
        "# On a card",
        "",
        f"Written by `python benchmarks/gpu.py`. Machine: {machine}.",
        f"FP16, medians of {CALLS} calls after {WARM_UP}. Host time is what a call takes before it "
        "returns. MB are 10^6 bytes, of PyTorch's allocator: for the model, and what a call adds.",
        "",
        "| model | way | latency, ms | host, us | model, MB | call, MB | relative L2 | first, s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        name = f"| `{row['model']}` | {row['way']} |"
        if "not_run" in row:
            lines.append(f"{name} not run: {row['not_run']} | | | | | |")
            continue
        lines.append(
            f"{name} {row['latency_ms']:.3f} | {row['host_us']:.0f} | "
            f"{row['model_bytes'] / 1e6:.1f} | {row['call_bytes'] / 1e6:.1f} | "
            f"{row['relative_l2']:.1e} | {row['first_call_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure six models on the card at hand.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--ways", nargs="*", choices=tuple(WAYS), default=tuple(WAYS))
    parser.add_argument("--seconds", type=int, default=300, help="for one way of one model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON; the page lies beside it")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "WAY"), help="here, as JSON")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA GPU on this machine, which is what this measures")
    if given.one:
        print(json.dumps(measure(*given.one)))
        return
    machine = describe_machine() | {
        "GPU": torch.cuda.get_device_name(),
        "compute capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "CUDA of PyTorch": str(torch.version.cuda),
    }
    rows: list[dict[str, Any]] = []
    for model in given.models or MODELS:
        for way in given.ways:
            rows.append(apart(model, way, given.seconds))
            print(json.dumps(rows[-1]), flush=True)
            result = {"machine": machine, "rows": rows}
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(result, indent=1) + "\n")
            given.out.with_suffix(".md").write_text(render_page(result))


if __name__ == "__main__":
    main()
