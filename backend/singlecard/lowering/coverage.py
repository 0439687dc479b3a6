"""The coverage page: every op that is lowered, with its conditions, written from the declarations.

python -m singlecard.lowering.coverage docs/coverage.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from singlecard.lowering.conditions import type_name
from singlecard.lowering.declaration import Declaration
from singlecard.lowering.table import CARRIED, declarations


def target_name(target: Any) -> str:
    """Return an op's full name, such as ``aten.add.Tensor``."""
    return str(target)


def render_coverage() -> str:
    """Return the page as Markdown."""
    return "\n".join(_lines(declarations())) + "\n"


def _lines(declared: Iterable[Declaration]) -> Iterator[str]:
    yield "# What singlecard lowers to TensorRT"
    yield ""
    yield (
        "Written by `python -m singlecard.lowering.coverage docs/coverage.md` from the "
        "declarations beside the converters: the partition decides by them, and `explain` words "
        "its reasons with them. What no line here takes stays in eager PyTorch."
    )
    yield ""
    types = ", ".join(type_name(dtype) for dtype in CARRIED)
    yield f"For every op: dense tensors of types {types}."
    for family, members in groupby(declared, key=lambda item: item.family):
        yield ""
        yield f"## {family}"
        yield ""
        yield "| op | lowered when | what it computes |"
        yield "| --- | --- | --- |"
        for item in members:
            names = ", ".join(f"`{target_name(target)}`" for target in item.targets)
            limits = "; ".join(condition.text for condition in item.conditions) or "always"
            for verb, more in (("takes", item.takes), ("gives", item.gives)):
                if more:
                    limits += f"; {verb} {', '.join(sorted(map(type_name, more)))} too"
            yield f"| {names} | {_cell(limits)} | {_cell(item.note)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> None:
    """Write the page to the file that is named, or to the terminal."""
    page = render_coverage()
    if arguments:
        Path(arguments[0]).write_text(page)
    else:
        print(page, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
