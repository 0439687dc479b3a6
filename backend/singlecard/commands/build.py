"""``singlecard build``: fill the cache with a model's engines; no GPU is needed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from singlecard.commands.answer import Answer
from singlecard.commands.arguments import (
    Parser,
    add_common,
    add_model,
    add_options,
    options_from,
)

if TYPE_CHECKING:
    from singlecard.report.verify import Compiled


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "build",
        help="build a model's engines into the cache",
        description="Build a model's engines, for cards that need not be in this machine, and "
        "keep them in the cache, where torch.compile finds them. Exit status 1 if no part of the "
        "model could become an engine.",
    )
    add_model(parser)
    add_options(parser)
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    options = options_from(given)
    from singlecard.commands.running import run_model
    from singlecard.report.verify import compile_model

    compiled = run_model(
        given,
        options,
        lambda model, progress: compile_model(
            model.module,
            model.args,
            model.kwargs,
            model.dynamic_shapes,
            options,
            "eager",
            progress,
        ),
    )
    targets = ",".join(options.targets or ()) or "portable"
    return Answer(
        _document(given.model, compiled, targets),
        _shown(given.model, compiled, targets),
        0 if compiled.engines else 1,
    )


def _document(name: str, compiled: Compiled, targets: str) -> dict[str, Any]:
    return {
        "model": name,
        "targets": targets,
        "ops": compiled.ops,
        "coverage": compiled.coverage,
        "fallback": [[item.op, item.reason, item.line] for item in compiled.fallback],
        "engines": [
            {
                "digest": engine.digest,
                "built": engine.built,
                "seconds": engine.seconds,
                "plan": str(engine.plan),
                "kernels": engine.report.kernel_count,
                "engine_bytes": engine.report.engine_bytes,
                "scratch_bytes": engine.report.scratch_bytes,
            }
            for engine in compiled.engines
        ],
        "timings": compiled.timings,
    }


def _shown(name: str, compiled: Compiled, targets: str) -> RenderableType:
    from singlecard.report import tables
    from singlecard.report.render import fallback_table

    built = sum(engine.built for engine in compiled.engines)
    rows = [
        ("ops lowered", *tables.lowered_text(compiled.coverage, compiled.ops)),
        ("engines", *tables.engines_text(len(compiled.engines), built)),
        ("time", f"{compiled.timings['total']:.1f} s", tables.built_text(compiled.timings)),
    ]
    parts: list[RenderableType] = [tables.facts_table(name, rows)]
    if compiled.fallback:
        left_out = [(item.op, item.reason, item.line) for item in compiled.fallback]
        parts.append(fallback_table(tables.fallback_rows(left_out)))
    if compiled.engines:
        parts.append(tables.engines_table(compiled.engines, targets))
    return Group(*parts)
