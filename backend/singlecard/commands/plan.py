"""``singlecard plan``: which precisions, batches and lengths fit on a card."""

from __future__ import annotations

import argparse
import dataclasses
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
from singlecard.errors import OptionError


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "plan",
        help="show which precisions, batches and lengths of a model fit on a card",
        description="Build a model's plans, and show what their weights, scratch, inputs, outputs "
        "and caches take on a card: in several precisions, and with weights streamed from host "
        "memory where they do not fit. No GPU is needed. Exit status 1 if nothing is known to fit.",
    )
    add_model(parser)
    add_options(parser)
    add_shapes(parser)
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--card",
        required=True,
        metavar="CARD",
        help="memory, such as 12GiB, or the name of a card, such as 'RTX 4070'",
    )
    group.add_argument(
        "--batches",
        metavar="SIZES",
        help="extents of axis 0 of the inputs (default: that of the examples, 1 and 8)",
    )
    group.add_argument(
        "--lengths",
        metavar="SIZES",
        help="places of the model's cache, or else tokens (default: as in the examples)",
    )
    group.add_argument(
        "--reserve",
        metavar="SIZE",
        help="memory that is left to CUDA and PyTorch, an assumption (default: 0.5GiB)",
    )
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    if given.memory_budget is not None:
        raise OptionError(
            "--memory-budget is what plan finds out: leave it out, and give it to build"
        )
    precisions = [name.strip() for name in (given.precision or "").split(",") if name.strip()]
    # The plan goes through precisions by itself, and gives the table to those that take one.
    table, given.precision, given.calibration = given.calibration, None, None
    options = options_from(given)
    batches, lengths = _sizes("--batches", given.batches), _sizes("--lengths", given.lengths)
    from singlecard.commands.running import run_model
    from singlecard.report.card_memory import memory_of_card
    from singlecard.report.memory_plan import PRECISIONS, RESERVE, plan_memory

    memory_of_card(given.card)  # before the model is loaded
    wanted = precisions or list(PRECISIONS)
    plan = run_model(
        given,
        options,
        lambda model, progress: plan_memory(
            model.module,
            model.args,
            model.kwargs,
            card=given.card,
            precisions=wanted,
            dynamic_shapes=model.dynamic_shapes,
            batches=batches,
            lengths=lengths,
            reserve=RESERVE if given.reserve is None else given.reserve,
            options={**vars(options), "calibration": table},
            progress=progress,
        ),
    )
    plan = dataclasses.replace(plan, name=given.model)
    return Answer(plan.to_dict(), plan.table(), 0 if plan.fits else 1)


def _sizes(argument: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    sizes = [size.strip() for size in text.split(",")]
    if not all(size.isdecimal() and size.isascii() and int(size) for size in sizes):
        raise OptionError(f"{argument} {text!r} is not valid: write integers >= 1, such as 1,8")
    return [int(size) for size in sizes]
