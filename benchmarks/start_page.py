"""`results/start.md` from the numbers of `start.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: What the project holds itself to.
WARM_SHARE, READING_TIMES, PEER_SHARE = 0.10, 2.0, 0.6


def render_page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    rows = result["rows"]
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    warm = [row for row in rows if "warm" in row]
    peers = [row for row in rows if "peer" in row]
    parts = [
        "# From the first call to a ready engine",
        f"Written by `python benchmarks/start.py`. Machine: {machine}.",
        f"FP16 engines for {result['target'].upper()}, medians of {rows[0]['runs']}, each "
        "measurement in a process of its own. *Ready*: the plan is in the cache and its checksum "
        "was taken; loading it onto a card is not in the figures. Seconds.",
        "## Cold and warm",
        "`torch.compile` calls the backend after Dynamo has traced the model, in every process "
        "and for every backend. The backend's own part is what the cache can shorten. An artifact "
        "of `singlecard.export` is loaded without Dynamo. *Reading* is the model's weights and "
        "the engine, read from the page cache into memory by one thread.",
        _table(
            (
                "model",
                "cold",
                "of it Dynamo",
                "warm",
                "of it Dynamo",
                "warm / cold",
                "backend's part: cold",
                "warm",
                "warm / cold",
                "reading",
                "backend's warm part / reading",
                "`singlecard.load`",
                "load / cold",
                "load / reading",
            ),
            [_warm(row) for row in warm],
        ),
        f"The aims: warm at most {WARM_SHARE:.0%} of cold, and at most {READING_TIMES:g} times "
        f"reading. {_verdict(warm)}",
    ]
    if peers:
        parts += [
            "## The cold path beside the ONNX route",
            "From the first call to an engine, against `torch.onnx.export(dynamo=True)`, "
            "`OnnxParser` and the same builder. Torch-TensorRT cannot be imported without a GPU.",
            _table(
                ("model", "singlecard", "ONNX route", "of it export", "parse", "build", "ratio"),
                [_peer(row) for row in peers],
            ),
            f"The aim: at most {PEER_SHARE:g}. {_peer_verdict(peers)}",
        ]
    return "\n\n".join(parts) + "\n"


def _warm(row: dict[str, Any]) -> list[str]:
    cold, warm, reading, load = row["cold"], row["warm"], row["reading"]["reading"], row["load"]
    return [
        f"`{row['model']}`",
        f"{cold['ready']:.2f}",
        f"{cold['dynamo']:.2f}",
        f"{warm['ready']:.2f}",
        f"{warm['dynamo']:.2f}",
        f"{warm['ready'] / cold['ready']:.0%}",
        f"{cold['backend']:.2f}",
        f"{warm['backend']:.3f}",
        f"{warm['backend'] / cold['backend']:.1%}",
        f"{reading:.3f}",
        f"{warm['backend'] / reading:.1f}",
        f"{load:.3f}",
        f"{load / cold['ready']:.1%}",
        f"{load / reading:.1f}",
    ]


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
    texts = []
    for words, time_of, cold_of in (
        ("`torch.compile` as a whole", lambda r: r["warm"]["ready"], lambda r: r["cold"]["ready"]),
        ("the backend's part", lambda r: r["warm"]["backend"], lambda r: r["cold"]["backend"]),
        ("`singlecard.load`", lambda r: r["load"], lambda r: r["cold"]["ready"]),
    ):
        share = [row["model"] for row in rows if time_of(row) > WARM_SHARE * cold_of(row)]
        times = [
            row["model"] for row in rows if time_of(row) > READING_TIMES * row["reading"]["reading"]
        ]
        texts.append(f"{words}: {_said('share', share)}, {_said('reading', times)}")
    return "; ".join(texts) + "."


def _said(aim: str, missed: Sequence[str]) -> str:
    return f"{aim} **missed** for {', '.join(missed)}" if missed else f"{aim} met"


def _peer(row: dict[str, Any]) -> list[str]:
    peer, ours = row["peer"], row["cold"]["ready"]
    steps = [peer[step] for step in ("export_seconds", "parse_seconds", "build_seconds")]
    return [
        f"`{row['model']}`",
        f"{ours:.2f}",
        f"{sum(steps):.2f}",
        *(f"{step:.2f}" for step in steps),
        f"{ours / sum(steps):.2f}",
    ]


def _peer_verdict(rows: Sequence[dict[str, Any]]) -> str:
    missed = [
        row["model"]
        for row in rows
        if row["cold"]["ready"] > PEER_SHARE * sum(row["peer"].values())
    ]
    return f"**Missed** for {', '.join(missed)}." if missed else "Met for all."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
