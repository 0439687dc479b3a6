"""Arguments that several verbs share, and the options they make."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from singlecard.axes import Axes, axes_from_text, nearest
from singlecard.errors import OptionError
from singlecard.options import Options, types_of
from singlecard.sizes import bytes_from_text
from singlecard.targets import check_types

if TYPE_CHECKING:
    from singlecard.commands.answer import Answer


class Parser(argparse.ArgumentParser):
    """An argument parser that raises, so that its errors read like all others."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Say which of the choices is nearest: argparse lists them all."""
        choices = list(action.choices or ())
        if choices and value not in choices:
            what = (action.metavar if isinstance(action.metavar, str) else action.dest).lower()
            hint = nearest(value, choices) or f"there are {', '.join(map(str, choices))} "
            self.error(f"unknown {what} {value!r}: {hint.strip()}")

    def error(self, message: str) -> NoReturn:
        raise OptionError(f"{message} (see '{self.prog} --help')")

    def refuse_unknown(self, unknown: Sequence[str]) -> None:
        """Raise for the first argument that no one declared."""
        if unknown:
            given = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(given, self._option_string_actions, 1)
            hint = f": did you mean {close[0]}?" if close else ""
            self.error(f"unknown argument {unknown[0]!r}{hint}")


def add_common(parser: Parser, run: Callable[[argparse.Namespace], Answer]) -> None:
    """Declare what every verb takes, and what runs it."""
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, parser=parser)


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="path.py:function or package.module:function that returns (module, args) or "
        "(module, args, kwargs), or a .pt2 file",
    )


def add_options(parser: Parser) -> None:
    """Declare the arguments that `options_from` reads; without one, Options' own default holds."""
    group = parser.add_argument_group("options of the backend")
    group.add_argument(
        "--precision",
        help="fp32 (default), tf32, fp16, bf16, int8, fp8, int8-weight, int4-weight or auto",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="a table of 'singlecard calibrate', for int8, fp8 and auto; with fp16 it tells which "
        "ops leave FP16's range",
    )
    group.add_argument(
        "--keep-fp32",
        metavar="OPS",
        help="ops, or modules with all their ops, that compute in FP32 whatever the precision",
    )
    group.add_argument(
        "--sparse-weights",
        action="store_true",
        default=None,
        help="let the builder use kernels for weights with 2:4 sparsity",
    )
    group.add_argument(
        "--targets",
        metavar="CARDS",
        help="cards to build for, such as sm86,sm89; or portable (default): Ampere and later",
    )
    group.add_argument(
        "--strict", action="store_true", default=None, help="fail if an op stays in PyTorch"
    )
    group.add_argument(
        "--demote-float64",
        action="store_true",
        default=None,
        help="compute float64 parts in FP32; they stay in PyTorch otherwise",
    )
    group.add_argument(
        "--min-block-size",
        type=int,
        metavar="OPS",
        help="leave engines with fewer ops to PyTorch (default: by an estimate of their worth)",
    )
    group.add_argument(
        "--exclude-ops", metavar="OPS", help="ops that stay in PyTorch, such as aten.softmax"
    )
    group.add_argument(
        "--exclude-modules",
        metavar="PATHS",
        help="modules that stay in PyTorch, such as encoder.layer.3,*.norm",
    )
    group.add_argument(
        "--workspace-bytes",
        type=size_from_text,
        metavar="SIZE",
        help="limit for an engine's scratch memory, such as 512MB",
    )
    group.add_argument(
        "--memory-budget",
        metavar="SIZE",
        help="GPU memory for the weights of engines, such as 8GiB; beyond it they are streamed "
        "from host memory",
    )
    add_cache_dir(group)
    group.add_argument(
        "--cache-limit",
        type=size_from_text,
        metavar="SIZE",
        help="what the folder may hold, such as 20GB (default: SINGLECARD_CACHE_LIMIT, or all)",
    )
    group.add_argument(
        "--remote-cache",
        metavar="ADDRESS",
        help="a folder of engines that machines share, such as s3://bucket/engines (default: "
        "SINGLECARD_REMOTE_CACHE, or none)",
    )
    group.add_argument(
        "--signing-key",
        type=Path,
        metavar="FILE",
        help="the secret that shared engines are signed with (default: SINGLECARD_SIGNING_KEY)",
    )


def add_cache_dir(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="FOLDER",
        help="folder of built engines (default: SINGLECARD_CACHE, or the user's cache folder)",
    )


def add_shapes(parser: Parser) -> None:
    """Declare ``--shapes``, whose texts `shapes_from` reads."""
    parser.add_argument(
        "--shapes",
        action="append",
        metavar="SIZES",
        help="sizes that inputs take, min:opt:max for each axis, one number for a fixed one, such "
        "as input_ids=1:8:32,1:128:512; several inputs by ';' or by another --shapes (default: "
        "those of the example arguments)",
    )


def shapes_from(given: argparse.Namespace) -> Axes:
    """Return the sizes of inputs that were given.

    Raises:
        OptionError: a text is malformed.
    """
    return axes_from_text(given.shapes) if given.shapes else {}


def add_build_file(parser: Parser) -> None:
    """Declare what a build file takes beside ``--cache-dir``."""
    group = parser.add_argument_group("build files")
    group.add_argument(
        "--workers",
        type=_count_from_text,
        metavar="N",
        help="jobs at a time, at most (default: the file's, or the number of cores)",
    )
    group.add_argument(
        "--memory",
        type=size_from_text,
        metavar="SIZE",
        help="memory that jobs hold together, such as 16GB (default: the file's, or 80%% of what "
        "is free)",
    )
    group.add_argument(
        "--only",
        action="append",
        metavar="NAMES",
        help="models of the file to build, such as bert,resnet*",
    )
    group.add_argument("--dry-run", action="store_true", help="say what would be built, and why")
    group.add_argument(
        "--rebuild",
        action="store_true",
        help="load every model again, also those whose files and versions have not changed",
    )


def options_from(given: argparse.Namespace) -> Options:
    """Return the options that were given.

    Raises:
        OptionError: one is not valid.
        TargetError: a card is unknown, or lacks the precision; found here, before work begins.
        CalibrationError: the calibration table cannot be read.
    """
    names = (
        "precision",
        "calibration",
        "keep_fp32",
        "sparse_weights",
        "targets",
        "strict",
        "demote_float64",
        "min_block_size",
        "exclude_ops",
        "exclude_modules",
        "workspace_bytes",
        "memory_budget",
        "cache_dir",
        "cache_limit",
        "remote_cache",
        "signing_key",
    )
    values = {name: getattr(given, name) for name in names}
    options = Options.parse({name: value for name, value in values.items() if value is not None})
    check_types(types_of(options.precision), options.targets or ())
    return options


def _count_from_text(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: it takes an integer >= 1")
    return int(text)


def size_from_text(text: str) -> int:
    """Return a number of bytes.

    >>> size_from_text("1.5GB")
    1500000000

    Raises:
        argparse.ArgumentTypeError: it is no size.
    """
    try:
        return bytes_from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
