"""Running a model for a verb: what is wrong with the model is told from what is wrong with us."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from singlecard.commands.arguments import shapes_from
from singlecard.commands.progress import progress_bars
from singlecard.commands.quiet import quiet
from singlecard.engine.cache import Cache
from singlecard.engine.remote import RemoteTier
from singlecard.errors import SinglecardError
from singlecard.network.building import Progress
from singlecard.offline.fitting import check_runs, fit
from singlecard.options import Options
from singlecard.report.model import Model, load_model

Result = TypeVar("Result")


def run_model(
    given: argparse.Namespace,
    options: Options,
    work: Callable[[Model, Progress | None], Result],
    *,
    builds: bool = True,
) -> Result:
    """Load MODEL, see to the cache where the work builds, and do it with progress shown.

    The model's example arguments have the sizes of ``--shapes`` when the work begins.

    Raises:
        OptionError: a size fits no input.
        ModelError: MODEL leads to no model, or to one that raises.
        CacheError: the cache folder cannot be used; found before the work, which may be long.
        OptionError: so of the remote cache.
    """
    shapes = shapes_from(given)
    # PyTorch logs the traceback of an error that it raises as well.
    with nullcontext() if given.debug else quiet("torch", logging.CRITICAL):
        with progress_bars(given.model) as progress:
            model = fit(load_model(given.model), shapes)
            if builds:
                Cache(options.cache_dir, fallback=not options.strict).open()
                RemoteTier.of(options)
            try:
                return work(model, progress)
            except SinglecardError:
                raise
            except Exception:
                check_runs(model, shapes)
                raise
