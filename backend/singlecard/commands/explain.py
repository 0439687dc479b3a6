"""``singlecard explain``: what the engines of a model do, and what stays in PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Group

from singlecard.commands.answer import Answer
from singlecard.commands.arguments import (
    Parser,
    add_common,
    add_model,
    add_options,
    add_shapes,
    options_from,
)
from singlecard.errors import OptionError


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "explain",
        help="show a model's kernels, traffic, memory and least time, and what stays in PyTorch",
        description="Build a model's engines and show what their plans say: kernels, bytes moved, "
        "scratch, the least time on real cards, and why ops stay in PyTorch. No GPU is needed.",
    )
    add_model(parser)
    add_options(parser)
    add_shapes(parser)
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="kernels to list (default: 10)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to a file too")
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    if given.top < 1:
        raise OptionError(f"--top {given.top} is not valid: it takes an integer >= 1")
    if given.html is not None and (given.html.is_dir() or not given.html.parent.is_dir()):
        raise OptionError(f"--html {given.html} is not valid: name a file in an existing folder")
    options = options_from(given)
    from singlecard.commands.running import run_model
    from singlecard.report.explain import explain

    explanation = run_model(
        given,
        options,
        lambda model, progress: explain(
            model.module,
            model.args,
            model.kwargs,
            dynamic_shapes=model.dynamic_shapes,
            options=options,
            progress=progress,
        ),
    )
    explanation = dataclasses.replace(explanation, name=given.model)
    document, shown = explanation.to_dict(), explanation.table(given.top)
    if given.html is not None:
        _write(given.html, explanation.html())
        document["html"] = str(given.html)
        shown = Group(shown, "", f"page: {given.html}")
    return Answer(document, shown)


def _write(path: Path, page: str) -> None:
    """Write a page whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OptionError(
            f"--html {path} cannot be written ({error.strerror or error}): name another file"
        ) from error
