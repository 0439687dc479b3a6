"""``singlecard verify``: does a model still give the same answers?"""

from __future__ import annotations

import argparse
import math
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
        "verify",
        help="compare a model's answers with eager PyTorch's",
        description="Build a model's engines, evaluate their networks with PyTorch ops, and "
        "compare with eager PyTorch. No GPU is needed. Exit status 1 if an answer is further off "
        "than the tolerance, or of another type or shape, or if there is no engine to verify.",
    )
    add_model(parser)
    add_options(parser)
    add_shapes(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="ERROR",
        help="largest relative L2 error that passes (default: what the precision, or the type of "
        "the model's outputs, can keep: 1e-5 for fp32, 5e-3 for tf32 and fp16, 4e-2 for bf16 and "
        "int8-weight, 1e-1 for int8 and fp8, 2e-1 for int4-weight and auto)",
    )
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    if given.tolerance is not None and not 0 <= given.tolerance < math.inf:
        raise OptionError(f"--tolerance {given.tolerance} is not valid: it takes a number >= 0")
    options = options_from(given)
    from singlecard.commands.running import run_model
    from singlecard.report.tables import verify_table
    from singlecard.report.tolerance import usual_tolerance
    from singlecard.report.verify import verify

    report = run_model(
        given,
        options,
        lambda model, progress: verify(
            model.module,
            model.args,
            model.kwargs,
            dynamic_shapes=model.dynamic_shapes,
            options=options,
            progress=progress,
        ),
    )
    limit = given.tolerance
    if limit is None:
        limit = usual_tolerance(options.precision, report.expected)
    # Without an engine PyTorch was compared with itself: that must not pass for a check.
    passed = bool(report.engines) and report.mismatch is None and report.relative_l2 <= limit
    document = {
        "model": given.model,
        "passed": passed,
        "tolerance": limit,
        **report.to_dict(),
    }
    return Answer(document, verify_table(report, limit), 0 if passed else 1)
