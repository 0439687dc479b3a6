"""``singlecard build``: fill the cache with engines, of one model or of many; no GPU is needed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType

from singlecard.axes import remarks_on
from singlecard.commands.answer import Answer
from singlecard.commands.arguments import (
    Parser,
    add_build_file,
    add_common,
    add_model,
    add_options,
    add_shapes,
    options_from,
    shapes_from,
)
from singlecard.errors import OptionError

if TYPE_CHECKING:
    from singlecard.options import Options
    from singlecard.report.verify import Compiled

#: Arguments that a build file takes.
_OF_FILES = ("workers", "memory", "only", "dry_run", "rebuild")

#: Arguments that both take.
_COMMON = ("cache_dir", "json", "debug", "model")


def add_parser(verbs: Any) -> None:
    parser: Parser = verbs.add_parser(
        "build",
        help="build the engines of a model, or of a build file, into the cache",
        description="Build a model's engines, for cards that need not be in this machine, and "
        "keep them in the cache, where torch.compile finds them. MODEL may be a build file "
        "(.toml), which lists many. Exit status 1 if no part of a model could become an engine, "
        "or if anything of a build file failed.",
    )
    add_model(parser)
    add_options(parser)
    add_shapes(parser)
    add_build_file(parser)
    add_common(parser, run)


def run(given: argparse.Namespace) -> Answer:
    if given.model.endswith(".toml"):
        return _run_file(given)
    _refuse(given, _OF_FILES, "is for a build file: name one that ends in .toml as MODEL")
    shapes = shapes_from(given)
    wanted = _options(given)
    built = [(options.precision, _build(given, options)) for options in wanted]
    targets = ",".join(wanted[0].targets or ()) or "portable"
    return _answer(given.model, targets, built, remarks_on(shapes))


def _options(given: argparse.Namespace) -> list[Options]:
    """Return the options of each precision; a calibration table goes to what takes one."""
    names = [name.strip() for name in (given.precision or "").split(",") if name.strip()]
    if len(names) < 2:
        return [options_from(given)]
    from singlecard.offline.build_file import takes_calibration

    used = any(map(takes_calibration, names))
    return [
        options_from(
            argparse.Namespace(
                **vars(given)
                | {
                    "precision": name,
                    "calibration": given.calibration
                    if takes_calibration(name) or not used
                    else None,
                }
            )
        )
        for name in dict.fromkeys(names)
    ]


def _build(given: argparse.Namespace, options: Options) -> Compiled:
    from singlecard.commands.running import run_model
    from singlecard.report.verify import compile_model

    return run_model(
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


def _answer(
    name: str, targets: str, built: Sequence[tuple[str, Compiled]], remarks: Sequence[str]
) -> Answer:
    from singlecard.offline.built import built_document, built_table

    status = 0 if all(compiled.engines for _, compiled in built) else 1
    if len(built) == 1:
        compiled = built[0][1]
        return Answer(
            built_document(name, compiled, targets, remarks),
            built_table(name, compiled, targets, remarks),
            status,
        )
    document = {
        "model": name,
        "targets": targets,
        "builds": [
            {"precision": precision, **built_document(name, compiled, targets, remarks)}
            for precision, compiled in built
        ],
    }
    tables: list[RenderableType] = [
        built_table(f"{name}, {precision}", compiled, targets) for precision, compiled in built
    ]
    return Answer(document, Group(*tables, *remarks), status)


def _run_file(given: argparse.Namespace) -> Answer:
    from singlecard.offline.run import Wishes, build_from_file

    others = [name for name in vars(given) if name not in (*_OF_FILES, *_COMMON)]
    _refuse(
        given,
        [name for name in others if name not in ("verb", "run", "parser")],
        f"is said in the build file {given.model}, for all models or for one",
    )
    only = [name.strip() for text in given.only or () for name in text.split(",")]
    wishes = Wishes(
        given.cache_dir,
        given.workers,
        given.memory,
        [name for name in only if name],
        given.rebuild,
        given.dry_run,
    )
    return build_from_file(Path(given.model), wishes)


def _refuse(given: argparse.Namespace, names: Any, why: str) -> None:
    for name in names:
        if getattr(given, name) not in (None, False):
            raise OptionError(f"--{name.replace('_', '-')} {why}")
