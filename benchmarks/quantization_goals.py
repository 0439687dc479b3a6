"""What singlecard's quantization is to reach, held against what `quantization.py` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Goal = tuple[str, str, str]

#: What the goals are held against: every op quantized that can be, calibration by default.
DEFAULT = "INT8 everywhere"

COSINE = SPEARMAN = 0.995
CNN_INT8, CNN_INT4 = 0.003, 0.01
DECODER_SHARE = 0.30
AUTO_SECONDS, AUTO_SAVING = 15 * 60, 0.25
THRESHOLD = 1e-3


def goals(parts: Mapping[str, Any]) -> Iterator[Goal]:
    """Yield each goal, what was measured, and whether it is met."""
    if own := rows_of(parts, "minilm", "own"):
        yield from minilm(own, rows_of(parts, "minilm", "peers"))
    for name in ("digits", "crepe"):
        if own := rows_of(parts, name, "own"):
            yield from cnn(name, own, rows_of(parts, name, "peers"))
    if rows := rows_of(parts, "decoder", "own"):
        by_kind = {row["precision"]: row for row in rows if "error" not in row}
        if {"fp16", "int4-weight"} <= by_kind.keys():
            share = by_kind["int4-weight"]["weights_bytes"] / by_kind["fp16"]["weights_bytes"]
            text = f"INT4 decoder's weights at most {DECODER_SHARE:.2f} of FP16's bytes"
            yield text, f"{share:.3f}", verdict(share <= DECODER_SHARE)
    for row in rows_of(parts, "auto", "own"):
        saving = 1 - row["bytes_moved"] / row["fp16_bytes"]
        met = row["seconds"] <= AUTO_SECONDS and saving >= AUTO_SAVING
        met = met and row["error"] <= row["tolerance"]
        rounding = "with" if row["round_weights"] else "without"
        yield (
            f'`precision="auto"` at {row["tolerance"]:.0%}, {rounding} GPTQ: within 15 minutes, '
            f"{AUTO_SAVING:.0%} fewer bytes",
            f"{row['seconds'] / 60:.1f} minutes, {saving:.1%} fewer, error {row['error']:.2%}, "
            f"on unseen sentences {row['unseen_error']:.2%}",
            verdict(met)
            + (
                "; the tolerance is not kept on unseen sentences"
                if row["unseen_error"] > row["tolerance"]
                else ""
            ),
        )
    if rows := rows_of(parts, "thresholds", "own"):
        for method in dict.fromkeys(row["method"] for row in rows):
            worst = max(
                row["relative"]
                for row in rows
                if row["method"] == method and row["peer"] == "ModelOpt"
            )
            text = f"{method} thresholds within {THRESHOLD:.0e} of pytorch-quantization's"
            yield text, f"{worst:.1e}", verdict(worst <= THRESHOLD)


def minilm(own: Sequence[Row], peers: Sequence[Row]) -> Iterator[Goal]:
    default = chosen(own)
    if default is None:
        return
    for metric, name, limit in (
        ("mean_cosine", "mean cosine", COSINE),
        ("spearman", "Spearman", SPEARMAN),
    ):
        value = default[metric]
        yield f"MiniLM, INT8: {name} at least {limit}", f"{value:.5f}", verdict(value >= limit)
        for peer, methods in (
            ("ONNX Runtime", ("percentile", "entropy")),
            ("torchao PT2E", ("histogram",)),
        ):
            found = [
                row
                for row in peers
                if row["peer"] == peer and row["method"] in methods and metric in row
            ]
            if found:
                best = max(found, key=lambda row: row[metric])
                yield (
                    f"MiniLM, INT8: {name} not below {peer} ({' or '.join(methods)})",
                    f"{value:.5f}, theirs at best {best[metric]:.5f} ({best['method']}, "
                    f"{best['form']})",
                    verdict(value >= best[metric]),
                )


def cnn(name: str, own: Sequence[Row], peers: Sequence[Row]) -> Iterator[Goal]:
    reference = next((row["accuracy"] for row in peers if row["peer"] == "FP32"), None)
    if reference is None:
        return
    by_form = (
        (chosen(own), "INT8", CNN_INT8),
        (chosen(own, "INT4 weights"), "INT4 weights", CNN_INT4),
    )
    for row, text, limit in by_form:
        if row is not None and (name == "digits" or text == "INT8"):
            loss = reference - row["accuracy"]
            yield (
                f"{name}, {text}: accuracy within {limit * 100:.1f} points of FP32",
                f"{row['accuracy']:.1%} for {reference:.1%}",
                verdict(loss <= limit + 1e-9),
            )


def chosen(rows: Sequence[Row], form: str = DEFAULT) -> Row | None:
    """Return the first row of a form that did not fail: that of the default method."""
    return next((row for row in rows if row["form"] == form and "error" not in row), None)


def rows_of(parts: Mapping[str, Any], name: str, key: str) -> Sequence[Row]:
    rows: Sequence[Row] = parts.get(name, {}).get(key, ())
    return rows


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"
