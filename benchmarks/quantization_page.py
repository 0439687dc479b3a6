"""The page of `quantization.py`: Markdown from what it measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from quantization_goals import COSINE, SPEARMAN, goals

Row = Mapping[str, Any]

TITLES = {
    "minilm": "MiniLM: real weights, 128 sentences to calibrate with, 300 others to evaluate on",
    "digits": "Residual CNN trained on scikit-learn's digits: 64 images, 500 others",
    "crepe": "CREPE, a CNN with published weights: 128 tones, 512 others",
    "decoder": "Weight-only decoder: weights in the plan",
    "auto": 'precision="auto": MiniLM, one sentence a call',
    "thresholds": "Thresholds beside published implementations",
}

METRICS = {
    "mean_cosine": "mean cosine",
    "spearman": "Spearman",
    "accuracy": "accuracy",
    "relative_l2": "relative L2",
}

ABOUT = """Answers of singlecard are those of the reference evaluator: the arithmetic of the very
network that is built, with FP16's rounding, as PyTorch ops on the CPU. **No engine has run on a
card.** Plans are built for SM89; bytes moved and kernels are the builder's own account of the
finished plan, not a measured time. The peers run on the CPU, and get the same model, calibration
data and evaluation data. MB are 10^6 bytes. Seconds are of a machine that did other work too."""

CASE = """*Everywhere* quantizes every op that can be; the bytes are those of such a plan. *As
placed* is what `precision="int8"` does: ops stay in FP16 where the plan would not get cheaper by
its own count. Bytes are of the first batch, of 32 rows. Unless stated, calibration has its
defaults: min-max, smoothing by search, bias correction."""

NOTES = {
    "digits": """INT4 and INT8 weights are for linear layers and embeddings: of this network one
layer of twelve. Convolutions stay in FP16 under `int4-weight`, so its limit says little here. The
layers are too small for INT8 to pay: placement leaves all of them in FP16.""",
    "crepe": "INT4 and INT8 weights are for linear layers: here one. Convolutions stay in FP16.",
    "decoder": """Llama-style, hidden size 1,024, 8 layers, 32,000 tokens, head not tied to the
embedding, seeded random weights; a prompt of 1 x 16 tokens. Rounded to
the nearest, without calibration. Random weights say nothing of accuracy on text: the error is that
of the logits, against FP32.""",
    "auto": """`singlecard.search_precision` with 128 sentences, unpadded; it measures errors on the
last 16, to which nothing is fitted. *Unseen* is 48 other sentences through
`execution="reference"`, against the original weights: the mean over sentences of the relative L2
error, and the largest. The goal is held against the error that the search itself measures; whether
the tolerance holds for unseen sentences, their column says. Bytes are of the first of the 16
alone.""",
    "thresholds": """The same histogram of 2,048 bins for all. ModelOpt carries the functions of
pytorch-quantization, which the goal is held against. ONNX Runtime's entropy is another algorithm,
Apache MXNet's, and is shown for comparison (`threshold_agreement.py` tells how it differs).""",
}


def render_page(parts: Mapping[str, Any]) -> str:
    """Return the page of all parts that were measured."""
    blocks = ["# Quantization beside ONNX Runtime, torchao and ModelOpt"]
    blocks += ["Written by `python benchmarks/quantization.py`.", ABOUT]
    blocks += ["## What was to be reached", table(("goal", "measured", ""), list(goals(parts)))]
    for name, part in parts.items():
        blocks.append(f"## {TITLES[name]}")
        blocks += part.get("notes", ())
        if "own" in part and name in SECTIONS:
            blocks += [NOTES[name], SECTIONS[name](part["own"])]
        elif name not in SECTIONS:
            blocks += [CASE] if name == "minilm" else []
            blocks += [NOTES[name]] if name in NOTES else []
            rows = [*part.get("peers", ())[:1], *part.get("own", ()), *part.get("peers", ())[1:]]
            blocks.append(case_table(rows))
            blocks += list(findings(part.get("own", ())))
            blocks += list(left_out(part.get("own", ())))
    blocks += ["## Peers' rows that failed", failed(parts)]
    blocks += ["## Machines and versions", *machines(parts)]
    return "\n\n".join(blocks) + "\n"


def case_table(rows: Sequence[Row]) -> str:
    """Return the rows of one model, ours and the peers', in the order given."""
    metrics = [metric for metric in METRICS if any(metric in row for row in rows)]
    heads = ("", "method", "form", *(METRICS[metric] for metric in metrics))
    heads += ("ops quantized", "MB moved", "kernels", "seconds")
    lines = []
    for row in rows:
        line = [row["peer"], row["method"], row["form"]]
        line += [f"{row[metric]:.5f}" if metric in row else "" for metric in metrics]
        line.append(f"{row['quantized']} of {row['points']}" if "quantized" in row else "")
        line.append(megabytes(row, "bytes_moved"))
        line.append(str(row.get("kernels", "")))
        line.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
        if "error" in row:
            line[2] += " (failed)"
        lines.append(line)
    return table(heads, lines)


def findings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what is not as one would wish: plans that move more, answers below the limits."""
    plans = {row["form"]: row for row in rows if row.get("bytes_moved")}
    if "FP16" in plans:
        half = plans["FP16"]["bytes_moved"]
        more = [
            f"{form} {row['bytes_moved'] / half - 1:+.0%}"
            for form, row in plans.items()
            if row["bytes_moved"] > 1.005 * half
        ]
        if more:
            yield f"Plans that move more bytes than FP16's for this batch: {', '.join(more)}."
    below = [
        f"{row['form']} ({row['method']})"
        for row in rows
        if row.get("mean_cosine", 1.0) < COSINE or row.get("spearman", 1.0) < SPEARMAN
    ]
    if below:
        yield (
            f"Of singlecard's own rows, below {COSINE} in mean cosine or Spearman: "
            f"{', '.join(below)}."
        )


def left_out(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence for each row of ours that tells why ops stay in FP16, or that failed."""
    for row in rows:
        if "error" in row:
            yield f"{row['form']} ({row['method']}) failed: {row['error']}"
        elif row.get("reasons") and row["form"] != "FP16":
            reasons = "; ".join(f"{text} ({count})" for text, count in row["reasons"].items())
            yield f"{row['form']} ({row['method']}): left in FP16, as {reasons}."


def decoder_table(rows: Sequence[Row]) -> str:
    base = rows[0]["weights_bytes"]
    heads = ("precision", "million parameters", "weights, MB", "of FP16", "MB moved", "kernels")
    return table(
        (*heads, "relative L2"),
        [
            [
                row["precision"],
                f"{row['parameters'] / 1e6:.0f}",
                megabytes(row, "weights_bytes"),
                f"{row['weights_bytes'] / base:.3f}",
                megabytes(row, "bytes_moved"),
                str(row["kernels"]),
                f"{row['relative_l2_of_first_batch']:.4f}",
            ]
            if "error" not in row
            else [row["precision"], f"failed: {row['error']}", *[""] * 5]
            for row in rows
        ],
    )


def auto_table(rows: Sequence[Row]) -> str:
    heads = ("GPTQ", "seconds", "error", "unseen", "unseen, largest", "MB moved", "FP16, MB")
    lines = []
    for row in rows:
        share = 1 - row["bytes_moved"] / row["fp16_bytes"]
        assigned = ", ".join(f"{count} {kind}" for kind, count in sorted(row["assigned"].items()))
        lines.append(
            [
                "yes" if row["round_weights"] else "no",
                f"{row['seconds']:.0f}",
                *(f"{row[key]:.2%}" for key in ("error", "unseen_error", "unseen_worst")),
                megabytes(row, "bytes_moved"),
                megabytes(row, "fp16_bytes"),
                f"{share:.1%}",
                f"{assigned}, of {row['points']}",
            ]
        )
    return table((*heads, "fewer", "ops"), lines)


def thresholds_table(rows: Sequence[Row]) -> str:
    heads = ("values", "method", "peer", "peer's", "singlecard's", "relative difference")
    return table(
        heads,
        [
            [row["values"], row["method"], row["peer"]]
            + [f"{row['theirs']:.5f}", f"{row['own']:.5f}", f"{row['relative']:.1e}"]
            for row in rows
        ],
    )


SECTIONS = {"decoder": decoder_table, "auto": auto_table, "thresholds": thresholds_table}


def failed(parts: Mapping[str, Any]) -> str:
    rows = [row for part in parts.values() for row in part.get("peers", ()) if "error" in row]
    if not rows:
        return "None."
    texts = (
        f"- {row['model']}, {row['peer']}, {row['method']}, {row['form']}: "
        f"{' '.join(row['error'].split())[:300]}"
        for row in rows
    )
    return "\n".join(texts)


def machines(parts: Mapping[str, Any]) -> Iterator[str]:
    """Yield each machine with versions once, with what was measured on it and how."""
    found: dict[str, list[str]] = {}
    for name, part in parts.items():
        for key, what in (("machine", name), ("peers_machine", f"{name}'s peers")):
            if key in part:
                facts = dict(part[key])
                command, day = facts.pop("command"), facts.pop("day")
                text = ", ".join(f"{fact} {value}" for fact, value in facts.items())
                found.setdefault(text, []).append(f"{what} (`{command}`, {day})")
    for text, names in found.items():
        yield f"{text}. Measured: {'; '.join(names)}."


def megabytes(row: Row, key: str) -> str:
    return f"{row[key] / 1e6:.1f}" if row.get(key) else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
