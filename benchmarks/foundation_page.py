"""`results/foundation.md` from the numbers of `foundation.py`.

python benchmarks/foundation_page.py              # again, from results/foundation.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What the project holds itself to, by precision: relative L2 error, and time beside the peer's.
ERROR_LIMIT = {"fp32": 1e-5, "fp16": 5e-3}
TIME_RATIO_LIMIT = 1 / 3


def render_page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = result["rows"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    low, high = result["torch_tensorrt_lowering_seconds_cited"]
    parts = [
        "# singlecard beside the ONNX route",
        "Written by `python benchmarks/foundation.py`. Machine: " + machine + ".",
        f"Engines for {result['target'].upper()}, never run: kernels, traffic and scratch are the "
        "builder's own account of the finished plan, read by one parser for both routes. "
        "`signal`, `wait`, `shape_call` and jumps do not count as kernels. MB are 10^6 bytes. "
        "The ONNX route is `torch.onnx.export(dynamo=True)` and `OnnxParser`, in FP16 after "
        "`model.half()`.",
        "## What is lowered, and how far the answers are from eager PyTorch in FP32",
        "The answers are those of the built network, evaluated layer by layer. Limits for the "
        f"error: {ERROR_LIMIT['fp32']:.0e} in FP32, {ERROR_LIMIT['fp16']:.0e} in FP16.",
        _table(
            ("model", "type", "ops", "left out", "engines", "relative L2", "largest difference"),
            [_answers(row) for row in rows],
        ),
        "## The plans: singlecard / ONNX route",
        "In FP16 both are of `model.half()`, with FP16 inputs and outputs. Torch-TensorRT's "
        "kernels are cited from earlier runs of its lowering: it cannot be imported on a machine "
        "without a GPU.",
        _table(
            (
                "model",
                "type",
                "kernels",
                "Torch-TensorRT (cited)",
                "moved, MB",
                "floor, MB",
                "scratch, MB",
                "engine, MB",
            ),
            [_plans(row) for row in rows],
        ),
        'With `precision="fp16"` a model keeps its FP32 inputs and outputs. What that costs, for '
        "singlecard alone:",
        _table(
            ("model", "type", "kernels", "moved, MB", "floor, MB", "scratch, MB"),
            [_mixed(row) for row in rows if row["precision"] == "fp16"],
        ),
        "## Seconds from model to network, and to engine",
        "Medians of "
        f"{max(row['runs'] for row in rows)} run(s), the routes taking turns, each in a fresh "
        "process with one torch thread, imports left out. The ONNX route's time is export and "
        "parsing; saving the file between them is not counted. The second ratio is of CPU seconds, "
        "which other work on the machine does not change. Limit for the ratio: "
        f"{TIME_RATIO_LIMIT:.2f}. "
        f"Torch-TensorRT's lowering takes {low} to {high} s for such models (cited).",
        _table(
            (
                "model",
                "type",
                "capture",
                "passes",
                "partition",
                "lowering",
                "in all",
                "ONNX route",
                "ratio",
                "ratio, CPU",
                "build",
                "build, ONNX route",
            ),
            [_times(row) for row in rows],
        ),
        "## Warm start",
        "A new process with the engine in the cache: what it builds, and what finding the engine "
        "takes (hashing the network, then reading and checking the plan).",
        _table(
            ("model", "type", "engines built", "hash the network, s", "look up and check, s"),
            [_warm(row) for row in rows],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _answers(row: dict[str, Any]) -> list[str]:
    ours = row["singlecard"]
    return [
        *_name(row),
        str(ours["ops"]),
        str(ours["ops_left_out"]),
        str(ours["engines"]),
        f"{ours['relative_l2']:.1e}" + _over(ours["relative_l2"], ERROR_LIMIT[row["precision"]]),
        f"{ours['max_abs_error']:.1e}",
    ]


def _plans(row: dict[str, Any]) -> list[str]:
    peer = row["onnx_route"]
    ours = row["singlecard"]["plans_of_half"] or row["singlecard"]
    return [
        *_name(row),
        f"{ours['kernels']} / {peer['kernels']}" + _over(ours["kernels"], peer["kernels"]),
        str(row["torch_tensorrt_kernels_cited"] or ""),
        _megabytes(ours, peer, "bytes_moved"),
        _megabytes(ours, peer, "floor_bytes"),
        _megabytes(ours, peer, "scratch_bytes"),
        _megabytes(ours, peer, "engine_bytes"),
    ]


def _mixed(row: dict[str, Any]) -> list[str]:
    ours = row["singlecard"]
    sizes = (ours[key] for key in ("bytes_moved", "floor_bytes", "scratch_bytes"))
    return [*_name(row), str(ours["kernels"]), *(f"{size / 1e6:.1f}" for size in sizes)]


def _megabytes(ours: dict[str, Any], peer: dict[str, Any], key: str) -> str:
    return f"{ours[key] / 1e6:.1f} / {peer[key] / 1e6:.1f}" + _over(ours[key], peer[key] * 1.001)


def _times(row: dict[str, Any]) -> list[str]:
    ours, peer = row["singlecard"], row["onnx_route"]
    stages = ours["stages"]
    return [
        *_name(row),
        *(f"{stages[stage]:.2f}" for stage in ("capture", "passes", "partition", "lowering")),
        f"{ours['to_network_seconds']:.2f}",
        f"{peer['to_network_seconds']:.2f}",
        *(
            f"{row[key]:.2f}" + _over(row[key], TIME_RATIO_LIMIT)
            for key in ("time_ratio", "cpu_ratio")
        ),
        f"{ours['build_seconds']:.2f}",
        f"{peer['build_seconds']:.2f}",
    ]


def _warm(row: dict[str, Any]) -> list[str]:
    warm = row["warm_start"]
    return [
        *_name(row),
        str(warm["built"]),
        f"{warm['digest_seconds']:.2f}",
        f"{warm['build_seconds']:.2f}",
    ]


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["model"], row["precision"].upper()


def _over(value: float, limit: float) -> str:
    """Mark what misses its limit."""
    return " (over)" if value > limit else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    results = Path(__file__).parent / "results"
    page = render_page(json.loads((results / "foundation.json").read_text()))
    (results / "foundation.md").write_text(page)
