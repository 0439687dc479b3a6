"""``fallback="inductor"`` beside plain TorchInductor, where no card serves engines.

    python benchmarks/fallback.py              # the six models, about 12 minutes
    python benchmarks/fallback.py minilm       # one model, printed and not written

Each model has a process of its own, in which it is compiled three times: by TorchInductor, by
singlecard with ``fallback="inductor"``, and by TorchInductor once more. Inductor's caches are off,
and the first two swap places from model to model. Then the three are called in turn, in an order
that is drawn anew for each round. How far the two plain ones are apart is the least difference that
this machine can tell.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import MODELS, load_case
from fallback_page import render_page
from fresh_process import Clock, median_of, run_fresh
from machine import describe_machine

RESULTS = Path(__file__).parent / "results"

ROUNDS = 60

WARM_UP = 5

#: What `torch.compile` is given. The third is a function, for Dynamo to take it for another backend
#: than the first, and compile again.
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"backend": "inductor"},
    "singlecard": {"backend": "singlecard", "options": {"fallback": "inductor"}},
    "plain again": {"backend": lambda *graph: torch._dynamo.lookup_backend("inductor")(*graph)},
}


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Compile a model in each way and time calls in turn; return medians in milliseconds."""
    from torch._inductor import config, metrics

    warnings.simplefilter("ignore")
    module, args, kwargs = load_case(model)
    calls: dict[str, Any] = {}
    kernels: dict[str, int] = {}
    times: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    order = list(WAYS)
    if MODELS.index(model) % 2:
        order[:2] = reversed(order[:2])
    with torch.no_grad(), config.patch(force_disable_caches=True):
        for way in order:
            before = metrics.generated_kernel_count
            calls[way] = torch.compile(module, **WAYS[way])
            calls[way](*args, **kwargs)
            kernels[way] = metrics.generated_kernel_count - before
        for _ in range(WARM_UP):
            for call in calls.values():
                call(*args, **kwargs)
        draw = random.Random(0)
        for _ in range(rounds):
            for way in draw.sample(order, len(order)):
                clock = Clock()
                calls[way](*args, **kwargs)
                wall, cpu = clock.read()
                times[way].append({"wall": wall * 1e3, "cpu": cpu * 1e3})
    medians = {
        way: {clock: median_of(runs, clock) for clock in ("wall", "cpu")}
        for way, runs in times.items()
    }
    return {"model": model, "rounds": rounds, "kernels": kernels, "milliseconds": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the fallback beside plain Inductor.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="medians over this many calls")
    parser.add_argument("--one", metavar="MODEL", help="one model, in this process, as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.rounds)))
        return
    rows = []
    for model in given.models or MODELS:
        rows.append(run_fresh("fallback.py", "--one", model, "--rounds", str(given.rounds)))
        print(json.dumps(rows[-1]), flush=True)
    result = {"machine": describe_machine(), "rows": rows}
    page = render_page(result)
    if given.models:
        print(page)
        return
    (RESULTS / "fallback.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "fallback.md").write_text(page)


if __name__ == "__main__":
    main()
