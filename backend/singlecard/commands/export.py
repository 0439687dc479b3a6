"""``singlecard export``: a model in one file, which ``singlecard.load`` runs without its source."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from singlecard.commands.answer import Answer
from singlecard.commands.arguments import (
    Parser,
    add_common,
    add_model,
    add_options,
    add_shapes,
    options_from,
)


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "export",
        help="write a model to one file that runs without the model's source",
        description="Build a model's engines, for cards that need not be in this machine, and "
        "write them to one file with all that singlecard.load needs to run the model without its "
        "source. Exit status 1 if no part of the model could become an engine.",
    )
    add_model(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the file, such as model.singlecard")
    parser.add_argument(
        "--fallback",
        action="store_true",
        help="put the whole model in as a program of PyTorch's too, for where engines cannot run",
    )
    add_options(parser)
    add_shapes(parser)
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    options = options_from(given)
    from singlecard.artifact.exporting import export
    from singlecard.artifact.table import export_table
    from singlecard.commands.running import run_model

    report = run_model(
        given,
        options,
        lambda model, progress: export(
            model.module,
            model.args,
            model.kwargs,
            given.out,
            dynamic_shapes=model.dynamic_shapes,
            options=options,
            fallback=given.fallback,
            progress=progress,
        ),
    )
    document = {"model": given.model, **report.to_dict()}
    return Answer(document, export_table(report), 0 if report.engines else 1)
