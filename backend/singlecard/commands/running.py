"""Running a model for a verb: what is wrong with the model is told from what is wrong with us."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch

from singlecard.commands.progress import progress_bars
from singlecard.commands.quiet import quiet
from singlecard.engine.cache import Cache
from singlecard.engine.remote import RemoteTier
from singlecard.errors import ModelError, SinglecardError
from singlecard.network.building import Progress
from singlecard.options import Options
from singlecard.report.measure import copied
from singlecard.report.model import Model, load_model
from singlecard.report.origin import first_line, place_of

Result = TypeVar("Result")


def run_model(
    given: argparse.Namespace,
    options: Options,
    work: Callable[[Model, Progress | None], Result],
    *,
    builds: bool = True,
) -> Result:
    """Load MODEL, see to the cache where the work builds, and do it with progress shown.

    Raises:
        ModelError: MODEL leads to no model, or to one that raises.
        CacheError: the cache folder cannot be used; found before the work, which may be long.
        OptionError: so of the remote cache.
    """
    # PyTorch logs the traceback of an error that it raises as well.
    with nullcontext() if given.debug else quiet("torch", logging.CRITICAL):
        with progress_bars(given.model) as progress:
            model = load_model(given.model)
            if builds:
                Cache(options.cache_dir, fallback=not options.strict).open()
                RemoteTier.of(options)
            try:
                return work(model, progress)
            except SinglecardError:
                raise
            except Exception:
                _check_runs(model)
                raise


def _check_runs(model: Model) -> None:
    """Run a model in eager PyTorch; compiled, its own errors look like Dynamo's."""
    try:
        with torch.no_grad():
            model.module(*copied(model.args), **copied(model.kwargs))
    except Exception as error:
        raise ModelError(
            f"the model {model.name} raised {type(error).__name__} at {place_of(error)}: "
            f"{first_line(error)}. It does so in plain PyTorch too: correct the model or its "
            "example arguments"
        ) from error
