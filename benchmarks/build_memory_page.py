"""The page on the memory of a build."""

from __future__ import annotations

from typing import Any

#: The most that a build may hold, as a multiple of the weights' bytes.
LIMIT = 2.8


def render_page(result: dict[str, Any]) -> str:
    """Return ``build_memory.md``."""
    run, target = result["run"], result["target"].upper()
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    lines = [
        "# Memory of a build",
        "",
        f"Written by `python benchmarks/build_memory.py`. Machine: {machine}. Times are "
        "wall-clock, on a machine that other programs used meanwhile.",
        "",
        f"A Llama-style decoder of {run['layers']} layers, {_gb(run['weights_bytes'])} GB of FP16 "
        f"weights, built for {target} in {run['seconds']:.0f} s: {run['engines']} engine, "
        f"{run['ops_left_out']} ops left out, a plan of {_gb(run['engine_bytes'])} GB. Memory "
        f"held beyond what importing takes ({_gb(run['imported_bytes'])} GB), in GB and as a "
        f"multiple of the weights. The limit for the peak is {LIMIT}.",
        "",
        *_table(run),
        "",
        "What the peak is made of: the model's own weights (1.0: the network's constants point at "
        "them), the finished plan, which the builder keeps whole until its last piece is in the "
        "file (1.0), and its copies of the weights that it merges: q, k and v, gate and up (0.7 of "
        "this model). Nothing of ours stands beside these three. A chain of plain linear layers, "
        "where nothing is merged, was seen to peak at 2.3.",
        "",
        "## Weights that are mapped from files",
        "",
        "The same decoder, loaded with `from_pretrained` from files of safetensors and built in "
        "FP16. What counts here is anonymous memory, `RssAnon`, sampled every 20 ms: pages of the "
        "files, and of the files that converted weights are put in, are given back where memory "
        "is short.",
    ]
    for kind, mapped in result["mapped"].items():
        lines += ["", f"### {kind.upper()} files", "", _about(mapped), "", *_table(mapped)]
    lines += [
        "",
        "What these peaks are made of: the plan and the merged copies of the builder, as above, "
        "and of converted weights the first 0.27 GB.",
        "",
        _derived(result),
    ]
    if result["large"]:
        lines += ["", "## Models of other sizes, mapped", ""]
    for name, mapped in result["large"].items():
        lines += [f"### {name}", "", _about(mapped), "", *_table(mapped), ""]
    return "\n".join(lines).rstrip() + "\n"


def _derived(result: dict[str, Any]) -> str:
    """Say how much this machine's memory would be enough for, as if peaks grew with the files."""
    memory = float(result["machine"]["memory"].split()[0]) * 2**30
    sizes = []
    for kind, run in result["mapped"].items():
        size = (memory - run["imported_bytes"]) * run["weights_bytes"] / run["peak_bytes"]
        sizes.append(f"{size / 1e9:.0f} GB of {kind.upper()} files")
    return (
        f"Derived from these peaks, not built: with all of this machine's {memory / 1e9:.0f} GB, "
        f"and nothing else running, about {' or '.join(sizes)}."
    )


def _about(run: dict[str, Any]) -> str:
    return (
        f"{_gb(run['weights_bytes'])} GB of weights in files, built in {run['seconds']:.0f} s: "
        f"{run['engines']} engine, {run['ops_left_out']} ops left out, a plan of "
        f"{_gb(run['engine_bytes'])} GB. Anonymous memory, multiples of the files."
    )


def _table(run: dict[str, Any]) -> list[str]:
    def row(what: str, held: int) -> str:
        return f"| {what} | {_gb(held)} | {held / run['weights_bytes']:.2f} |"

    return [
        "| what | GB | x weights |",
        "| --- | ---: | ---: |",
        row("the model, before", run["model_bytes"]),
        *(row(f"most in: {name}", peak) for name, peak in run["peaks_by_phase"].items()),
        row("after the build", run["held_after_bytes"]),
        row("**peak**", run["peak_bytes"]),
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"
