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
    from singlecard.network.versions import builds_for_other_cards
    from singlecard.report.installation import inspect_installation
    from singlecard.report.tables import facts_table

    findings = inspect_installation(given.cache_dir)
    can_build = not any(finding.fine is False for finding in findings)
    types: dict[str, dict[str, bool]] = {}
    if can_build and builds_for_other_cards():
        from singlecard.report.trial import measure_targets

        types = measure_targets()
    document = {
        "can_build": can_build,
        "findings": [vars(finding) for finding in findings],
        "targets": types,
    }
    marks = {True: "", False: "WRONG: ", None: ""}
    rows = [(item.name, marks[item.fine] + item.value, item.cure) for item in findings]
    verdict = "Engines can be built." if can_build else "Engines cannot be built."
    parts: list[Table | str] = [facts_table("singlecard doctor", rows)]
    if types:
        parts.append(_types_table(types))
    return Answer(document, Group(*parts, verdict), 0 if can_build else 1)


def _types_table(types: dict[str, dict[str, bool]]) -> Table:
    from singlecard.engine.cards import cards_of
    from singlecard.report.plan_rows import Grid
    from singlecard.report.render import table_of

    rows = [
        (
            target,
            *("yes" if builds else "no" for builds in row.values()),
            ", ".join(card.name for card in cards_of([target])),
        )
        for target, row in types.items()
    ]
    columns = ("target", *next(iter(types.values())), "cards")
    note = "a matrix product of this type builds: tried just now"
    return table_of(Grid("Targets", columns, tuple(rows), note))
