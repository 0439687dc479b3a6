"""What every door does with a model, its arguments and its ranges before any work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from singlecard.axes import Axes
from singlecard.options import Options, Span
from singlecard.report.arguments import Arguments, arguments_of
from singlecard.report.ranges import read_axes, to_profile
from singlecard.report.training import check_evaluation
from singlecard.unmatched import tell_of_model


@dataclass(frozen=True, eq=False)
class Entrance:
    """A model that can be compiled as it was asked for.

    Attributes:
        call: the model and its example arguments.
        axes: what varies among them.
        options: with the ranges of engines in ``profiles``.
    """

    call: Arguments
    axes: Axes
    options: Options


def enter(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    options: Mapping[str, Any] | Options | None,
) -> Entrance:
    """Check all that a door was given.

    What has a range in option ``profiles`` varies as what has one in ``dynamic_shapes``. Where both
    name an axis, engines serve the range of ``profiles``.

    Raises:
        OptionError: an option, the model, its arguments or a range is not valid.
    """
    chosen = Options.parse(options)
    call = arguments_of(model, args, kwargs)
    check_evaluation(model)
    tell_of_model(model, chosen)
    axes = read_axes(dynamic_shapes, call)
    given: dict[str, dict[int, Any]] = {}
    for span in chosen.profiles:
        sizes = (span.smallest, span.usual, span.largest)
        given.setdefault(span.input, {})[span.axis] = sizes
    wanted = read_axes(given, call, "option profiles")
    both = {
        path: {**wanted.get(path, {}), **axes.get(path, {})}
        for path in call.leaves
        if path in wanted or path in axes
    }
    spans = {(span.input, span.axis): span for span in to_profile(both, call)}
    spans |= {(span.input, span.axis): span for span in to_profile(wanted, call)}
    return Entrance(call, both, dataclasses.replace(chosen, profiles=_in_order(spans, call)))


def _in_order(spans: Mapping[tuple[str, int], Span], call: Arguments) -> tuple[Span, ...]:
    places = {path: place for place, path in enumerate(call.leaves)}
    return tuple(sorted(spans.values(), key=lambda span: (places[span.input], span.axis)))
