"""`results/architectures.md` from the numbers of `architectures.py`.

python benchmarks/architectures_page.py           # again, from results/architectures.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def render_page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = result["rows"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    kinds = {row["model_type"] for row in rows}
    partly = {row["model_type"] for row in rows if row["left_out"]}
    ratios = [row["cpu_ratio"] for row in rows if row["cpu_ratio"] is not None]
    faster = sum(ratio < 1 for ratio in ratios)
    refused = [row for row in rows if row.get("onnx_route")]
    counts = sorted({row["runs"] for row in rows})
    runs = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    parts = [
        "# Whole models",
        "Written by `python benchmarks/architectures.py`. Machine: " + machine + ".",
        "Models of `transformers`, small, with seeded random weights, in FP32: "
        "[tests/models/architectures.py](../../tests/models/architectures.py). Answers are those "
        "of the built engines' networks, evaluated layer by layer and compared with eager "
        "PyTorch's. Seconds are CPU seconds from model to network, in one process that has taken "
        f"other models before, the best of {runs} run(s); the ONNX route is "
        "`torch.onnx.export(dynamo=True)` and `OnnxParser`, without saving the file between them.",
        f"{len(rows)} models of {len(kinds)} architectures (`model_type`); "
        f"{len(kinds - partly)} architectures have nothing left to PyTorch. The largest error is "
        f"{max(row['relative_l2'] for row in rows):.1e}. {faster} of {len(ratios)} that both "
        f"routes take are faster here; the ONNX route fails on {len(refused)}.",
        "`*`: with `torch._dynamo.config.capture_scalar_outputs = True`, as Dynamo's hint on the "
        "graph break says.",
        _table(rows),
    ]
    left = [row for row in rows if row["fallback"]]
    if left:
        parts += ["## What is left to PyTorch", _left_out(left)]
    if refused:
        parts += [
            "## What the ONNX route says",
            "\n".join(f"- {row['name']}: {_quoted(row['onnx_route'])}" for row in refused),
        ]
    return "\n\n".join(parts) + "\n"


HEAD = (
    "model",
    "family",
    "ops",
    "coverage",
    "engines",
    "kernels",
    "relative L2",
    "seconds",
    "ONNX route",
    "ratio",
)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2), *(_line(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(row: dict[str, Any]) -> list[str]:
    theirs, ratio = row.get("onnx_cpu_seconds"), row["cpu_ratio"]
    return [
        row["name"] + (" `*`" if row.get("scalars") else ""),
        row["family"],
        str(row["ops"]),
        f"{row['coverage']:.3f}",
        str(row["engines"]),
        str(row["kernels"]),
        f"{row['relative_l2']:.1e}" if not row["mismatch"] else row["mismatch"],
        f"{row['singlecard_cpu_seconds']:.2f}",
        f"{theirs:.2f}" if theirs else "fails",
        (f"{ratio:.2f}" + (" (over)" if ratio >= 1 else "")) if ratio else "",
    ]


def _left_out(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"- {row['name']}: {op}: {_quoted(reason)}"
        for row in rows
        for op, reason in row["fallback"]
    )


def _quoted(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


if __name__ == "__main__":
    results = Path(__file__).parent / "results"
    page = render_page(json.loads((results / "architectures.json").read_text()))
    (results / "architectures.md").write_text(page)
