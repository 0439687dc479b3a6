"""Measure every op of PyTorch's operator database, and write the page and the record.

    python -m tests.ops.page

takes some minutes, and writes `docs/operators.md` and `tests/ops/lowered.json`.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.ops import tolerances
from tests.ops.harness import EAGER, LOWERED, RAISED, RANDOM, WRONG
from tests.ops.measure import PARTLY, Measured, measure
from tests.ops.record import Table, type_name, write_record
from tests.ops.relevant import DTYPES, all_ops, dtypes_of, exclusion, relevant_ops
from tests.ops.samples import TAKEN

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"

STATES = (LOWERED, PARTLY, EAGER, WRONG, RAISED)


#: Processes that measure at a time.
PROCESSES = 2


def _be_quiet() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _measure(name: str) -> dict[torch.dtype, Measured]:
    op = relevant_ops()[name]
    return {dtype: measure(op, dtype) for dtype in dtypes_of(op)}


def measure_ops() -> Table:
    """Measure every relevant op in every type that it takes."""
    names = list(relevant_ops())
    context = multiprocessing.get_context("spawn")
    table = {}
    with ProcessPoolExecutor(PROCESSES, context, initializer=_be_quiet) as pool:
        for name, row in zip(names, pool.map(_measure, names), strict=True):
            table[name] = row
            print(f"\r{len(table)}/{len(names)} {name:60.60}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return table


def render_page(table: Table) -> str:
    """Return the page as Markdown."""
    return "\n".join([*_head(table), "", *_rows(table), "", *_excluded()]) + "\n"


def _head(table: Table) -> Iterator[str]:
    assert tolerances.__doc__
    yield "# PyTorch's operators in singlecard"
    yield ""
    yield (
        "Written by `python -m tests.ops.page` from PyTorch's own operator database "
        f"(`op_db` of torch {torch.__version__.partition('+')[0]}): up to {TAKEN} samples of each "
        "operator and type, chosen to differ, are captured, lowered, evaluated by the reference "
        "evaluator and compared with eager PyTorch; the first lowered one is also built."
    )
    yield ""
    yield "- **lowered**: all samples run in an engine as a whole."
    yield "- **partly**: some samples do; what stays in eager PyTorch stays for the reason given."
    yield "- **eager**: PyTorch runs it; the answer is right, and the reason given."
    yield ""
    yield "| type | " + " | ".join(STATES) + " | in all | lowered |"
    yield "| --- |" + " ---: |" * (len(STATES) + 2)
    for dtype in DTYPES:
        counts = Counter(row[dtype].state for row in table.values() if dtype in row)
        total = counts.total() - counts[RANDOM]
        share = f"{counts[LOWERED] / max(total, 1):.1%}"
        cells = [str(counts[state]) for state in STATES]
        yield f"| {type_name(dtype)} | " + " | ".join(cells) + f" | {total} | {share} |"
    yield ""
    yield "## How close is right"
    yield ""
    yield tolerances.__doc__.partition("\n")[2].strip()


def _rows(table: Table) -> Iterator[str]:
    yield "## Operators"
    yield ""
    yield "| operator | " + " | ".join(map(type_name, DTYPES)) + " | why not whole |"
    yield "| --- |" + " --- |" * (len(DTYPES) + 1)
    for name, row in sorted(table.items(), key=lambda item: item[0].lower()):
        states = [row[dtype].state if dtype in row else "" for dtype in DTYPES]
        reasons = dict.fromkeys(
            measured.reason for measured in row.values() if measured.state != LOWERED
        )
        text = "; ".join(filter(None, reasons)).replace("|", "\\|")
        yield f"| `{name}` | " + " | ".join(states) + f" | {text} |"


def _excluded() -> Iterator[str]:
    yield "## Left out of the count"
    yield ""
    yield (
        "An inference backend is not measured on these. Samples that draw random numbers "
        "must be right and do not count either; an op that has no others is `random`."
    )
    yield ""
    reasons: dict[str, list[str]] = {}
    for name, op in all_ops().items():
        reason = exclusion(op)
        if reason:
            reasons.setdefault(reason, []).append(f"`{name}`")
    for reason, names in reasons.items():
        yield f"- {reason} ({len(names)}): {', '.join(names)}"


def main() -> None:
    table = measure_ops()
    write_record(table)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render_page(table))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
