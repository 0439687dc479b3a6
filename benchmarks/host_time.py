"""What Python does in a call before and behind the card's own work; no GPU needed.

    python benchmarks/host_time.py                # all cases, about 2 minutes
    python benchmarks/host_time.py "4 inputs"     # one case, printed and not written

A card and a TensorRT that do nothing (`host_time_card.py`) stand in the place of the real ones, so
what is left is our own Python, Dynamo's guards, and PyTorch's allocation of results in host memory.
Each level is called with what the level above called it with. The results of a call are held until
the next one is done, so that their addresses change from call to call. Each case has a process of
its own; a round is the median of many calls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tensorrt_rtx as trt
import torch
from fresh_process import run_fresh
from host_time_card import TARGET, Context, Taps, aligned, nothing_done
from host_time_page import render_page
from machine import describe_machine

import singlecard
from singlecard import backend
from singlecard.network.executing import LoadedEngine
from singlecard.options import Options
from singlecard.runtime.engine import EngineRunner
from singlecard.runtime.executable import Executable
from singlecard.session import Session

RESULTS = Path(__file__).parent / "results"

ROUNDS, CALLS, WARM_UP = 7, 1000, 200

#: What is called at each level inside of `torch.compile`'s.
LEVELS = {
    "engine": (LoadedEngine, "__call__"),
    "runner": (EngineRunner, "__call__"),
    "executable": (Executable, "attempt"),
}

#: The library's methods whose calls are counted.
_COUNTED = {
    getattr(Context, name).__code__
    for name in ("set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3")
}


class Adding(torch.nn.Module):
    """As many results as inputs, with weights that are folded to one constant."""

    def __init__(self, weights: int = 0) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.rand(64).half() for _ in range(weights))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        added = torch.stack(list(self.weights)).sum(0) if len(self.weights) else 1
        return tuple(item + added for item in inputs)


class Caching(torch.nn.Module):
    """Writes one word to caches of keys and values."""

    def forward(
        self, word: torch.Tensor, place: torch.Tensor, *caches: torch.Tensor
    ) -> torch.Tensor:
        for cache in caches:
            cache.index_copy_(2, place, word)
        return word + 1


@dataclass(frozen=True)
class Case:
    """A model, and the arguments of calls that are made in turn."""

    model: torch.nn.Module
    calls: Sequence[Sequence[torch.Tensor]]
    dynamic: bool = False


def case_of(name: str) -> Case:
    return CASES[name]()


def _rows(count: int = 4) -> torch.Tensor:
    return aligned((count, 64), torch.float16)


def _cache() -> Case:
    caches = [aligned((1, 8, 32, 64), torch.float16) for _ in range(8)]
    word, place = aligned((1, 8, 1, 64), torch.float16), aligned((1,), torch.int64)
    return Case(Caching(), [(word, place, *caches)])


CASES: dict[str, Callable[[], Case]] = {
    "1 input": lambda: Case(Adding(), [[_rows()]]),
    "4 inputs": lambda: Case(Adding(), [[_rows() for _ in range(4)]]),
    "16 inputs": lambda: Case(Adding(), [[_rows() for _ in range(16)]]),
    "8 caches in place": _cache,
    "dynamic, the same shapes": lambda: Case(Adding(), [[_rows()]], dynamic=True),
    "dynamic, two shapes in turn": lambda: Case(Adding(), [[_rows()], [_rows(6)]], dynamic=True),
    "200 weights": lambda: Case(Adding(200), [[_rows()]]),
    "1,000 weights": lambda: Case(Adding(1000), [[_rows()]]),
}


def measure(name: str) -> dict[str, Any]:
    """Return microseconds for each level, and calls of the library."""
    case = case_of(name)
    case.model.eval()
    with torch.no_grad(), nothing_done(), tempfile.TemporaryDirectory() as folder:
        options = {"targets": TARGET, "cache_dir": folder, "min_block_size": 1}
        inner, calls = inner_levels(case, Options.parse(options))
        whole = compiled(case, lambda *graph: compile_graph(Options.parse(options), *graph))
        dynamo = compiled(case, canned)
        file = Path(folder) / "model.singlecard"
        shapes = tuple({0: (1, 16)} for _ in case.calls[0]) if case.dynamic else None
        singlecard.export(
            case.model, case.calls[0], path=file, dynamic_shapes=shapes, options=options
        )
        loaded = singlecard.load(file, device="cpu")
        levels = inner | {
            level: [_bound(call, args) for args in case.calls]
            for level, call in (("compile", whole), ("dynamo", dynamo), ("load", loaded))
        }
        return {
            "case": name,
            "calls": calls,
            "microseconds": {level: timed(made) for level, made in levels.items()},
        }


def _bound(call: Callable[..., Any], args: Sequence[Any]) -> Callable[[], Any]:
    return lambda: call(*args)


def compile_graph(options: Options, *graph: Any) -> Callable[..., Any]:
    return backend.compile_in(Session(options, "engine", True), *graph)


def canned(graph: torch.fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
    """Do nothing instead of a graph, for as many results: what Dynamo's own part costs."""
    results: list[Any] = []

    def run(*args: Any) -> Any:
        if not results:
            results.append(graph(*args))
        return results[0]

    return run


def compiled(case: Case, compiler: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a model anew, and call it with all its arguments."""
    torch._dynamo.reset()
    call: Callable[..., Any] = torch.compile(case.model, backend=compiler, dynamic=case.dynamic)
    for args in case.calls:
        call(*args)
    return call


def inner_levels(case: Case, options: Options) -> tuple[dict[str, list[Any]], float]:
    """Return calls of the levels inside of `torch.compile`'s, and library calls in one call."""
    outer: list[Any] = []
    given: list[Any] = []

    def compiler(*graph: Any) -> Callable[..., Any]:
        outer.append(compile_graph(options, *graph))
        return noting

    def noting(*args: Any) -> Any:
        given.append(args)
        return outer[-1](*args)

    call = compiled(case, compiler)
    given.clear()
    taps = Taps(list(LEVELS.values()))
    found: dict[str, list[Any]] = {level: [] for level in LEVELS}
    with taps.opened():
        for args in case.calls:
            call(*args)
            for level, (owner, _) in LEVELS.items():
                found[level].append(taps.calls[owner.__name__])
    assert len(outer) == 1, "one graph was to serve all calls"
    found["graph"] = [_bound(outer[0], args) for args in given]
    return found, library_calls(found["graph"])


def library_calls(calls: Sequence[Callable[[], Any]]) -> float:
    """Return how often the library is called in one of some calls, when all were made before."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code in _COUNTED

    turns = itertools.cycle(calls)
    kept = [next(turns)() for _ in range(2 * len(calls))][-1:]
    sys.setprofile(note)
    try:
        for _ in range(4 * len(calls)):
            kept = [next(turns)()]
    finally:
        sys.setprofile(None)
    del kept
    return count / (4 * len(calls))


def timed(calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
    """Return the least and the middle of some rounds, each the median of calls in turn."""
    now, turns = time.perf_counter_ns, itertools.cycle(calls)
    rounds = []
    for _ in range(WARM_UP):
        kept = next(turns)()
    for _ in range(ROUNDS):
        spent = []
        for _ in range(CALLS):
            call = next(turns)
            started = now()
            kept = call()
            spent.append(now() - started)
        rounds.append(median(spent) / 1e3)
    del kept
    return {"least": min(rounds), "median": median(rounds)}


def call_costs() -> dict[str, float]:
    """Return nanoseconds of calls of the real library, of what stands in for it, and of PyTorch.

    Runtime objects need a card; these are other members of the same library, and need none.
    """
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network()
    tensor = network.add_input("x", trt.float16, (-1, 64))
    context = Context({})
    known = {"network": network, "tensor": tensor, "context": context, "torch": torch}
    return {
        text: min(timeit.repeat(text, globals=known, number=100_000, repeat=7)) * 1e4
        for text in (
            "network.num_layers",
            "network.get_input(0)",
            "tensor.set_dimension_name(0, 'batch')",
            "context.set_tensor_address('x', 4096)",
            "torch.empty_strided((4, 64), (64, 1), dtype=torch.float16, device='cpu')",
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what Python does in a call.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--one", metavar="CASE", help="one case, in this process, as JSON")
    parser.add_argument("--costs", action="store_true", help="of single library calls, as JSON")
    given = parser.parse_args()
    if given.one or given.costs:
        print(json.dumps(measure(given.one) if given.one else call_costs()))
        return
    rows = []
    for name in given.cases or CASES:
        rows.append(run_fresh("host_time.py", "--one", name))
        print(json.dumps(rows[-1]), flush=True)
    costs = run_fresh("host_time.py", "--costs")
    result = {
        "machine": describe_machine(),
        "rounds": ROUNDS,
        "calls": CALLS,
        "call_nanoseconds": costs,
        "rows": rows,
    }
    page = render_page(result)
    if given.cases:
        print(page)
        return
    (RESULTS / "host_time.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "host_time.md").write_text(page)


if __name__ == "__main__":
    main()
