"""Compile a sentence encoder with real weights, in FP16, for a card that is not in this machine.

    python examples/sentence_embeddings.py

all-MiniLM-L6-v2 embeds 22 sentences and 6 queries. The script lowers it to a TensorRT engine for
an Ada card (RTX 40, L4), evaluates that engine's own network in FP16 with PyTorch, and checks that
it ranks the sentences for every query exactly as eager PyTorch does in FP32. Then it starts again
in a new process, which finds the engine in the cache and builds nothing. Last it ranks them on the
machine at hand: with an engine if there is a GPU that engines run on, and else in PyTorch, with a
warning that says why. The exit status is 1 if a ranking differs or the second process builds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch
from models import SentenceEncoder, minilm_inputs
from rich.console import Console
from rich.table import Table
from torch import Tensor

import singlecard

QUERIES = (
    "pets resting indoors",
    "how do I cook Italian food",
    "why did mortgage payments go up",
    "training deep networks on a GPU",
    "what happened to the football team",
    "plans for a rainy weekend",
)

# No two of these score within 0.001 of each other for a query, and FP16 moves a score by 0.0003: a
# ranking that differs is an error of the engine's, and never a tie that fell the other way.
SENTENCES = (
    "A kitten is napping on the sofa.",
    "Interest rates rose by half a percent this quarter.",
    "The central bank tightened its monetary policy.",
    "Many families pay more for their home loans now.",
    "Gold prices fell after the announcement.",
    "The sauce needs two cloves of garlic and ripe tomatoes.",
    "Fresh basil makes the soup taste of summer.",
    "He ordered sushi for the whole office.",
    "The graphics card ran out of memory during training.",
    "Half precision doubles the throughput of matrix products.",
    "Neural networks learn faster with larger batches.",
    "An engineer profiled the model on her laptop.",
    "The home side lost the final on penalties.",
    "Their goalkeeper saved three shots in the second half.",
    "The tennis match was postponed until Monday.",
    "It will rain all Saturday and most of Sunday.",
    "Rain is forecast for the whole weekend.",
    "The museum opens a new exhibition of maps.",
    "We stayed in and played board games.",
    "The mountain trail is closed because of snow.",
    "The train to the coast leaves at noon.",
    "The violinist practised until midnight.",
)


def rank(embeddings: Tensor) -> Tensor:
    """Return for each query the numbers of the sentences, nearest first."""
    queries, sentences = embeddings[: len(QUERIES)], embeddings[len(QUERIES) :]
    return (queries @ sentences.T).argsort(dim=1, descending=True)


def rank_here(model: SentenceEncoder, inputs: dict[str, Tensor], cache: str | None) -> Tensor:
    """Rank on this machine's GPU, or without one, as a user's program does."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"precision": "fp16", "cache_dir": cache}
    compiled = torch.compile(model.to(device), backend="singlecard", options=options)
    with torch.inference_mode():
        return rank(compiled(**{name: value.to(device) for name, value in inputs.items()})).cpu()


def show_report(console: Console, report: singlecard.VerifyReport) -> None:
    """Print what became of the model: the facts of the report that the README speaks of."""
    plans = report.plans
    facts = {
        "ops lowered": f"{report.coverage:.0%} of {report.ops}",
        "engines": f"{report.engines}, of which {report.built} built now",
        "kernels": str(sum(plan.kernel_count for plan in plans)),
        "engine size": f"{sum(plan.engine_bytes for plan in plans) / 1e6:.1f} MB",
        "scratch": f"{max(plan.scratch_bytes for plan in plans) / 1e6:.1f} MB",
        "error against eager FP32": f"{report.relative_l2:.1e} (relative L2)",
    }
    table = Table("all-MiniLM-L6-v2, FP16", "", title_justify="left")
    for name, value in facts.items():
        table.add_row(name, value)
    console.print(table)
    for op, reason in report.fallback:
        console.print(f"{op} stays in PyTorch: {reason}")


def show_rankings(console: Console, expected: Tensor, found: Tensor) -> None:
    """Print the nearest sentence for each query, and whether all stand in the same order."""
    table = Table("query", "nearest sentence, FP16", f"order of all {len(SENTENCES)}")
    for query, want, got in zip(QUERIES, expected, found, strict=True):
        same = "same as FP32" if torch.equal(want, got) else "DIFFERS from FP32"
        table.add_row(query, SENTENCES[int(got[0])], same)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile a sentence encoder and check it.")
    parser.add_argument("--target", default="sm89", help="the card to build for (default: sm89)")
    parser.add_argument("--cache-dir", help="folder of built engines (default: the user's cache)")
    parser.add_argument("--again", action="store_true", help="only the second process's part")
    given = parser.parse_args()
    console = Console()
    options = {"precision": "fp16", "targets": (given.target,), "cache_dir": given.cache_dir}

    model = SentenceEncoder().eval()
    inputs = minilm_inputs(QUERIES + SENTENCES)
    with console.status(f"Lowering all-MiniLM-L6-v2 and building its engine for {given.target}"):
        report = singlecard.verify(model, (), inputs, options=options)
    if given.again:
        console.print(f"A new process: {report.built} engines built, {report.engines} found.")
        return int(report.built > 0)
    show_report(console, report)

    compiled = torch.compile(
        model, backend="singlecard", options=options | {"execution": "reference"}
    )
    before = singlecard.counters()
    with torch.inference_mode():
        expected, found = rank(model(**inputs)), rank(compiled(**inputs))
    if not (singlecard.counters() - before).evaluations:
        console.print("The network was not evaluated: PyTorch was compared with itself.")
        return 1
    show_rankings(console, expected, found)

    again = subprocess.run([sys.executable, *sys.argv, "--again"])
    here = rank_here(model, inputs, given.cache_dir)
    same = "as in FP32" if torch.equal(expected, here) else "DIFFERENT from FP32"
    console.print(f"On this machine: all rankings {same}.")
    return int(
        not torch.equal(expected, found) or again.returncode != 0 or not torch.equal(expected, here)
    )


if __name__ == "__main__":
    sys.exit(main())
