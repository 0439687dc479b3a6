"""What the placement of INT8 takes: plans built, time, and memory from one plan to the next.

    python benchmarks/int8_placement.py                    # both models, each in its own process
    python benchmarks/int8_placement.py mobilenet_v2       # this one; the other's result stays

MobileNetV2 at 224 x 224 (52 convolutions), and a decoder of SmolLM2-135M's shape over 32 tokens
(30 layers), both with random weights, are calibrated on one call and compiled for SM89 with
``precision="int8"``. After each plan that is built and read, the process's memory is noted. Writes
``results/int8_placement.json`` and, to be read, ``int8_placement.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from build_memory import RESULTS, forget_peak, memory_now
from cases import TARGET
from fresh_process import run_fresh
from machine import describe_machine
from torch import nn

import singlecard
from singlecard import choosing
from singlecard.engine.cards import Card
from singlecard.placement import Build, Placement
from singlecard.precision.points import Point


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2: expanded, filtered by channel, and narrowed again."""

    def __init__(self, given: int, made: int, stride: int, factor: int) -> None:
        super().__init__()
        inside = given * factor
        self.adds = stride == 1 and given == made
        parts = [_convolution(given, inside, 1)] if factor > 1 else []
        parts += [_convolution(inside, inside, 3, stride, inside), nn.Conv2d(inside, made, 1)]
        self.parts = nn.Sequential(*parts, nn.BatchNorm2d(made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.parts(x) if self.adds else self.parts(x)


def _convolution(given: int, made: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    layer = nn.Conv2d(given, made, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(made), nn.ReLU6())


#: Factor, channels, count and first stride of the stages (Sandler et al., 2018, table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2() -> tuple[nn.Module, torch.Tensor]:
    parts, width = [_convolution(3, 32, 3, 2)], 32
    for factor, made, count, stride in STAGES:
        for place in range(count):
            parts.append(Inverted(width, made, 1 if place else stride, factor))
            width = made
    head = [_convolution(width, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*parts, *head, nn.Linear(1280, 1000))
    return model.eval(), torch.randn(1, 3, 224, 224)


def smollm2() -> tuple[nn.Module, torch.Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval(), torch.randint(0, 49152, (1, 32))


MODELS: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
    "mobilenet_v2": mobilenet_v2,
    "smollm2": smollm2,
}


@torch.no_grad()
def measure(name: str) -> dict[str, Any]:
    """Calibrate and compile a model; return what it took, as plain values."""
    torch.manual_seed(0)
    model, example = MODELS[name]()
    started = time.perf_counter()
    table = singlecard.calibrate(model, [example], smoothing=None)
    calibrated = time.perf_counter()
    trials: list[dict[str, float]] = []
    found: list[Placement] = []
    place = choosing.place

    def watched(
        points: Sequence[Point],
        candidates: Mapping[str, str],
        build: Build,
        cards: Sequence[Card],
        most: int,
    ) -> Placement:
        def noted(assignment: Mapping[str, str]) -> Any:
            begun = time.perf_counter()
            reports = build(assignment)
            took = time.perf_counter() - begun
            trials.append({"seconds": round(took, 1), "held": memory_now()["VmRSS"]})
            return reports

        before = memory_now()["VmRSS"]
        found.append(place(points, candidates, noted, cards, most))
        trials.insert(0, {"seconds": 0.0, "held": before})
        return found[-1]

    choosing.place = watched
    forget_peak()
    with tempfile.TemporaryDirectory() as cache:
        options = {"precision": "int8", "calibration": table, "targets": TARGET}
        settings = {**options, "cache_dir": cache, "execution": "eager"}
        torch.compile(model, backend="singlecard", options=settings)(example)
    compiled = time.perf_counter()
    (placed,) = found
    return {
        "name": name,
        "parameters": sum(item.numel() for item in model.parameters()),
        "points": len(placed.decisions),
        "int8": sum(item.taken == "int8" for item in placed.decisions),
        "calibrate_seconds": round(calibrated - started, 1),
        "compile_seconds": round(compiled - calibrated, 1),
        "before": trials[0]["held"],
        "trials": trials[1:],
        "peak": memory_now()["VmHWM"],
        "after": memory_now()["VmRSS"],
    }


def render_page(result: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [
        "# Placement of INT8",
        "",
        "Written by `python benchmarks/int8_placement.py`. Machine: "
        f"{machine}. Times are wall-clock, on a machine that other programs used meanwhile.",
        "",
        "Random weights, calibrated on one call with `smoothing=None`, compiled for SM89. Memory "
        "is all that the process holds (VmRSS), in MB: before the first plan, after plans that "
        "were built and read, the most at any time, and after the model was compiled.",
        "",
        "| model | million parameters | ops that may be INT8 | that are | plans built | "
        "calibrating, s | compiling, s | of it plans, s | before | after the first | middle | "
        "last | peak | compiled |",
        "| --- |" + " ---: |" * 13,
    ]
    for row in result["rows"]:
        held = [trial["held"] for trial in row["trials"]]
        spent = sum(trial["seconds"] for trial in row["trials"])
        memory = (row["before"], held[0], held[len(held) // 2], held[-1], row["peak"], row["after"])
        cells = [
            row["name"],
            f"{row['parameters'] / 1e6:.1f}",
            *map(str, (row["points"], row["int8"], len(held))),
            *(
                f"{value:.0f}"
                for value in (row["calibrate_seconds"], row["compile_seconds"], spent)
            ),
            *(f"{value / 2**20:.0f}" for value in memory),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the placement of INT8.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="all where none is given")
    parser.add_argument("--here", action="store_true", help="print the result of this process")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(MODELS))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if given.here:
        print(json.dumps(measure(given.names[0])))
        return
    file = RESULTS / "int8_placement.json"
    before = json.loads(file.read_text())["rows"] if given.names and file.exists() else []
    rows = {row["name"]: row for row in before}
    for name in given.names or MODELS:
        rows[name] = run_fresh("int8_placement.py", name, "--here")
        result = {
            "machine": describe_machine(),
            "rows": [rows[item] for item in MODELS if item in rows],
        }
        file.write_text(json.dumps(result, indent=1) + "\n")
        file.with_suffix(".md").write_text(render_page(result))
        print(file.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
