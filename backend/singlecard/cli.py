"""The command line: the verbs of the library from a shell.

Exit status: 0 done; 1 the answer is no (``verify`` found another answer, ``build`` no engine,
or a job of a build file failed, ``plan`` that nothing fits, ``cache verify`` a damaged engine,
``cache explain`` that one is missing, ``doctor`` that nothing can be built); 2 the input is bad;
3 an error of singlecard's own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

from singlecard import __version__
from singlecard.commands import build, cache, calibrate, doctor, explain, export, plan, verify
from singlecard.commands.answer import Answer, print_answer, print_document
from singlecard.commands.arguments import Parser
from singlecard.commands.quiet import quiet
from singlecard.errors import SinglecardError
from singlecard.warning import SinglecardWarning

_VERBS = (build, verify, explain, plan, calibrate, export, cache, doctor)
_BAD_INPUT, _OWN_ERROR, _INTERRUPTED = 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: without the program's name; None means those of this process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, as_json = "--debug" in given, "--json" in given
    try:
        answer = _run(given)
    except SinglecardError as error:
        return _fail(error, str(error), _BAD_INPUT, debug, as_json)
    except KeyboardInterrupt:
        print("singlecard: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        text = (
            f"{type(error).__name__}: {error}: this is an error of singlecard's own. "
            "--debug shows the traceback: please report it"
        )
        return _fail(error, text, _OWN_ERROR, debug, as_json)
    return _print(answer, as_json)


def _print(answer: Answer, as_json: bool) -> int:
    """Write an answer, whose reader may have gone away; return the exit status."""
    try:
        if sys.stdout is None:  # the shell has closed it
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        print_answer(answer, as_json)
        sys.stdout.flush()
    except OSError as error:
        _let_go_of_stdout()
        if error.errno == errno.EPIPE:  # such as head, which has read enough
            return answer.status
        text = error.strerror or str(error)
        print(f"singlecard: the answer cannot be written: {text}", file=sys.stderr)
        return _BAD_INPUT
    return answer.status


def _let_go_of_stdout() -> None:
    """Let Python end without another attempt to write what is left."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)


def _run(arguments: Sequence[str]) -> Answer:
    given, unknown = _parser().parse_known_args(arguments)
    given.parser.refuse_unknown(unknown)
    # Standard output carries the answer alone: what a model prints goes where progress goes.
    # Why ops stay in PyTorch is part of the answer, and needs no line in the log.
    with contextlib.redirect_stdout(sys.stderr), quiet("singlecard", logging.ERROR):
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            answer: Answer = given.run(given)
    return answer


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning of ours as one line, and others as Python does."""
    if issubclass(category, SinglecardWarning):
        print(f"singlecard: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def _parser() -> Parser:
    parser = Parser(
        prog="singlecard",
        description="TensorRT engines for PyTorch models, built and checked without a GPU.",
    )
    parser.add_argument("--version", action="version", version=f"singlecard {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in _VERBS:
        verb.add_parser(verbs)
    return parser


def _fail(error: Exception, text: str, status: int, debug: bool, as_json: bool) -> int:
    line = " ".join(text.split())
    if debug:
        traceback.print_exception(error)
    print(f"singlecard: {line}", file=sys.stderr)
    if as_json:
        print_document({"error": {"type": type(error).__name__, "message": line}})
    return status
