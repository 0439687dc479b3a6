"""``singlecard doctor``: what is installed, what it can serve, what is missing."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Group
from rich.table import Table

from singlecard.commands.answer import Answer
from singlecard.commands.arguments import Parser, add_cache_dir, add_common


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "doctor",
        help="tell what is installed, what it can serve, and what is missing",
        description="Tell what is installed, which cards and types it can serve, where the cache "
        "is, what is missing and how to get it. Exit status 1 if engines cannot be built.",
    )
    add_cache_dir(parser)
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    from singlecard.report.installation import inspect_installation, served_types
    from singlecard.report.tables import facts_table

    findings = inspect_installation(given.cache_dir)
    can_build = not any(finding.fine is False for finding in findings)
    types = served_types() if can_build else {}
    document = {
        "can_build": can_build,
        "findings": [vars(finding) for finding in findings],
        "targets": types,
    }
    marks = {True: "", False: "WRONG ", None: ""}
    rows = [(item.name, marks[item.fine] + item.value, item.cure) for item in findings]
    verdict = "Engines can be built." if can_build else "Engines cannot be built."
    parts: list[Table | str] = [facts_table("singlecard doctor", rows)]
    if types:
        parts.append(_types_table(types))
    return Answer(document, Group(*parts, verdict), 0 if can_build else 1)


def _types_table(types: dict[str, dict[str, bool]]) -> Table:
    from singlecard.report.installation import card_names
    from singlecard.report.plan_rows import Grid
    from singlecard.report.render import table_of

    rows = [
        (target, *("yes" if served else "no" for served in row.values()), card_names(target))
        for target, row in types.items()
    ]
    precisions = tuple(next(iter(types.values())))
    return table_of(Grid("Targets", ("target", *precisions, "cards"), tuple(rows)))
