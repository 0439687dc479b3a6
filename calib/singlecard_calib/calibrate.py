"""`singlecard.calibrate`, and `singlecard.calibrating` for an evaluation loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

from singlecard.errors import CalibrationError, OptionError, SinglecardError
from singlecard.options import Options
from singlecard.precision.table import CalibrationTable
from singlecard.report.measure import compiled_for_now
from singlecard.report.origin import first_line
from singlecard.unmatched import tell_of_model
from singlecard_calib.choose import Smoothing
from singlecard_calib.collect import Collecting
from singlecard_calib.feeding import Call, calls, check_evaluation, run
from singlecard_calib.progress import Callback, progress_shown
from singlecard_calib.scales import table_of
from singlecard_calib.settings import Settings

#: Calls that samples are shared out to where it is not known how many there will be.
_EXPECTED = 64

#: Graphs that calls may differ in.
_GRAPHS = 64

#: One graph more is an error: what runs unwatched would lack in the table.
_LIMITS = {
    "recompile_limit": _GRAPHS,
    "accumulated_recompile_limit": 64 * _GRAPHS,
    "fail_on_recompile_limit_hit": True,
}


def calibrate(
    model: Callable[..., Any],
    data: Iterable[Any],
    *,
    method: str = "min-max",
    percentile: float = 99.99,
    smoothing: Smoothing | None = "search",
    weights: str | None = None,
    bias_correction: bool = True,
    keep_statistics: bool = True,
    options: Mapping[str, Any] | Options | None = None,
    progress: Callback | None = None,
) -> CalibrationTable:
    """Run a model on data, and choose the scales that quantization needs.

    The model runs in PyTorch, unchanged, without gradients, on the device that it is on.

    Args:
        model: in evaluation mode.
        data: what it is called with, call by call: tensors, tuples of arguments, dictionaries of
            keyword arguments, or pairs of both; a list, a generator or a DataLoader.
        method: ``"min-max"``, ``"moving-average"``, ``"percentile"``, ``"entropy"`` or ``"mse"``.
        percentile: share of a tensor's elements, in percent, that the percentile method holds.
        smoothing: range that goes from tensors to the weights that read them, channel by channel
            (SmoothQuant): None, a strength between 0 and 1, or ``"search"`` for the strength with
            the least error of each layer's output.
        weights: ``"int8"`` or ``"int4"`` where the table is for weights alone: looks for what makes
            their error least, as AWQ does (Lin et al., 2023).
        bias_correction: bring the mean of each output channel back to what it was.
        keep_statistics: keep what was seen in the table, so that tables can be merged.
        options: of the backend; those that change the graph count: ``demote_float64``,
            ``exclude_ops``, ``exclude_modules``.
        progress: called after each call with the calls done, and how many there are if known.
            None: a bar, where standard error is a terminal.

    Returns:
        The table, for the option ``calibration``, and for `CalibrationTable.save`.

    Raises:
        CalibrationError: no data, or data that the model does not take; NaN or infinite values; a
            model in training mode, or with nothing in it that could be quantized.
        OptionError: an argument is not valid.

    Example:
        >>> import torch, singlecard
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> table = singlecard.calibrate(model, [torch.rand(2, 8) for _ in range(4)])
        >>> table.samples
        4
    """
    settings = Settings(method, percentile, smoothing, weights, bias_correction, keep_statistics)
    length = _length(data)
    with _collecting(model, options, length or _EXPECTED) as watched:
        with progress_shown(progress, length) as show:
            for done, call in enumerate(calls(data), 1):
                _feed(watched, call, done)
                show(done, length)
    return table_of(watched.session.seen, settings)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a generator, or a loader of a stream
        return None


def _feed(watched: _Watched, call: Call, number: int) -> None:
    """Make one call.

    Raises:
        CalibrationError: it names the call.
    """
    try:
        watched(call)
    except _ModelFailed as failure:
        error = failure.error
        raise CalibrationError(
            f"the model raised {type(error).__name__} for call {number} of the calibration data: "
            f"{first_line(error)}. It does so in plain PyTorch too: compare the call with what the "
            "model takes"
        ) from error
    except CalibrationError as error:
        raise CalibrationError(f"call {number} of the calibration data: {error}") from None


@dataclass
class Calibration:
    """What `calibrating` gives: the table, once the loop is done."""

    session: Collecting
    settings: Settings

    def table(self) -> CalibrationTable:
        """Return the scales from all that was seen so far.

        Raises:
            CalibrationError: the model was not called, or nothing in it could be quantized.
        """
        return table_of(self.session.seen, self.settings)


@contextmanager
def calibrating(
    model: torch.nn.Module,
    *,
    method: str = "min-max",
    percentile: float = 99.99,
    smoothing: Smoothing | None = "search",
    weights: str | None = None,
    bias_correction: bool = True,
    keep_statistics: bool = True,
    options: Mapping[str, Any] | Options | None = None,
) -> Iterator[Calibration]:
    """Watch a model while an evaluation loop of one's own calls it.

    Takes what `calibrate` takes, but for data and progress.

    Example:
        >>> import torch, singlecard
        >>> model = torch.nn.Linear(8, 4).eval()
        >>> with singlecard.calibrating(model) as calibration:
        ...     for _ in range(4):
        ...         answer = model(torch.rand(2, 8))
        >>> calibration.table().samples
        4
    """
    settings = Settings(method, percentile, smoothing, weights, bias_correction, keep_statistics)
    if not isinstance(model, torch.nn.Module):
        raise OptionError(f"calibrating watches an nn.Module, got {type(model).__name__}")
    with _collecting(model, options, _EXPECTED) as watched:

        def through(*args: Any, **kwargs: Any) -> Any:
            try:
                return watched((args, kwargs))
            except _ModelFailed as failure:
                raise failure.error from None
            finally:
                model._compiled_call_impl = through

        model._compiled_call_impl = through
        yield Calibration(watched.session, settings)


@contextmanager
def _collecting(
    model: Callable[..., Any], options: Mapping[str, Any] | Options | None, expected: int
) -> Iterator[_Watched]:
    """Give what calls a model, watched, without what it was compiled to."""
    session = Collecting(options, expected)
    check_evaluation(model)
    tell_of_model(model, session.options)
    with compiled_for_now(model, session.backend) as compiled:
        watched = _Watched(model, session, compiled)
        if not isinstance(model, torch.nn.Module):
            yield watched
            return
        before, model._compiled_call_impl = model._compiled_call_impl, None
        try:
            yield watched
        finally:
            model._compiled_call_impl = before


class _ModelFailed(Exception):
    """The model raised, in plain PyTorch too."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Watched:
    """Calls a model through a collecting session."""

    def __init__(
        self, model: Callable[..., Any], session: Collecting, compiled: Callable[..., Any]
    ) -> None:
        self.model, self.session, self.compiled = model, session, compiled

    def __call__(self, call: Call) -> Any:
        """Make a call.

        Raises:
            _ModelFailed: the model does not take this call.
            CalibrationError: a value is NaN or infinite, or the call leads to one graph too many.
        """
        args, kwargs = call
        if isinstance(self.model, torch.nn.Module):
            self.model._compiled_call_impl = None  # what is traced is the model itself
        try:
            with torch.no_grad(), torch._dynamo.config.patch(_LIMITS):
                result = self.compiled(*args, **kwargs)
        except SinglecardError:
            raise
        except FailOnRecompileLimitHit:
            raise CalibrationError(
                f"PyTorch has captured the model as {_GRAPHS} graphs, and this call needs another: "
                "calibrate with fewer kinds of calls, or mark what varies as dynamic"
            ) from None
        except Exception as error:
            if isinstance(error, BackendCompilerFailed):  # Dynamo's envelope around one of ours
                if isinstance(error.inner_exception, SinglecardError):
                    raise error.inner_exception from None
            try:
                run(self.model, call)
            except Exception as own:
                raise _ModelFailed(own) from None
            raise
        self.session.seen.calls += 1
        return result
