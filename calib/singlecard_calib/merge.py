"""One calibration table of several, each made from a part of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from singlecard.errors import CalibrationError, OptionError
from singlecard.precision.table import CalibrationTable, Fingerprint, TensorScale, differences
from singlecard_calib.choose import method_from
from singlecard_calib.methods import METHODS
from singlecard_calib.observe import Observer

#: Two thresholds that differ by less than this share are the same.
_SAME = 1e-6

_INSTEAD = (
    "calibrate each part with singlecard.calibrate(model, part, smoothing=None, weights=None, "
    "keep_statistics=True)"
)


def merge_tables(tables: Sequence[CalibrationTable]) -> CalibrationTable:
    """Return the table of all data, from tables of its parts.

    Statistics are merged, and thresholds chosen again, as if one process had seen all. A threshold
    that was edited by hand stays.

    Args:
        tables: of one model, made by one method, with statistics and without smoothing. A mean of
            a channel is weighted by the calls of its table.

    Raises:
        CalibrationError: the tables are of different models or methods, have no statistics, are
            smoothed, or contradict each other.
        OptionError: there is no table.

    Example:
        >>> import torch, singlecard
        >>> model, data = torch.nn.Linear(8, 4).eval(), torch.rand(6, 2, 8)
        >>> def part(calls):
        ...     return singlecard.calibrate(model, calls, smoothing=None)
        >>> whole = singlecard.merge_tables([part(data[:4]), part(data[4:])])
        >>> whole.samples, whole.tensors["model:linear/input"].largest == float(data.max())
        (6, True)
    """
    tables = list(tables)
    if not tables or not all(isinstance(table, CalibrationTable) for table in tables):
        raise OptionError(f"merge_tables takes a list of calibration tables, got {tables!r}")
    first = tables[0]
    for place, table in enumerate(tables[1:], 2):
        _check_same(first, table, place)
    names = dict.fromkeys(name for table in tables for name in table.tensors)
    return CalibrationTable(
        method=first.method,
        samples=sum(table.samples for table in tables),
        graphs=first.graphs,
        tensors={name: _merged(name, tables) for name in names},
        assignment=_assignment(tables),
        keep_fp32=tuple(dict.fromkeys(name for table in tables for name in table.keep_fp32)),
        percentile=first.percentile,
    )


def _check_same(first: CalibrationTable, table: CalibrationTable, place: int) -> None:
    ways = [(item.method, item.percentile) for item in (first, table)]
    if ways[0] != ways[1]:
        said = [name if share is None else f"{name} {share}" for name, share in ways]
        raise CalibrationError(
            f"tables 1 and {place} are made by different methods, {said[0]} and {said[1]}: "
            "calibrate all parts by one"
        )
    for known, met, text in (
        (first, table, f"table {place} is of another model than table 1"),
        (table, first, f"table {place} has seen less of the model than table 1"),
    ):
        for graph in met.graphs:
            if graph in known.graphs:
                continue
            nearest: Fingerprint = max(
                known.graphs, key=lambda item: len(item.keys() & graph.keys()), default={}
            )
            differing = "; ".join(differences(nearest, graph))
            here = "table 1" if met is first else f"table {place}"
            raise CalibrationError(f"calibration {text}: {differing} (the model is that of {here})")


def _assignment(tables: Sequence[CalibrationTable]) -> dict[str, str]:
    found: dict[str, str] = {}
    for table in tables:
        for name, precision in table.assignment.items():
            if found.setdefault(name, precision) != precision:
                raise CalibrationError(
                    f"calibration tables assign {name} to {found[name]} and to {precision}: edit "
                    "one of them"
                )
    return found


def _merged(name: str, tables: Sequence[CalibrationTable]) -> TensorScale:
    parts = [(table, table.tensors[name]) for table in tables if name in table.tensors]
    whole = Observer()
    edited: dict[float, None] = {}
    choose = method_from(_known_method(parts[0][0]), parts[0][0].percentile)
    for _, scale in parts:
        if scale.divisor or scale.weights_divisor:
            raise CalibrationError(
                f"calibration tables with a divisor for {name} cannot be merged: it was chosen for "
                f"one part of the data. Instead, {_INSTEAD}"
            )
        seen = _observer(name, scale.statistics)
        if abs(choose(seen) - scale.threshold) > _SAME * scale.threshold:
            edited[scale.threshold] = None
        whole.merge(seen)
    if len(edited) > 1:
        raise CalibrationError(
            f"calibration tables have different thresholds, edited by hand, for {name}: "
            f"{', '.join(map(str, edited))}. Edit one of them"
        )
    return TensorScale(
        threshold=next(iter(edited), choose(whole)),
        largest=max(scale.largest for _, scale in parts),
        means=_means(name, parts),
        statistics=whole.to_dict(),
    )


def _known_method(table: CalibrationTable) -> str:
    if table.method not in METHODS:
        raise CalibrationError(
            f"calibration tables of the method {table.method!r} cannot be merged: it is none of "
            f"{', '.join(METHODS)}"
        )
    return table.method


def _observer(name: str, statistics: Mapping[str, object] | None) -> Observer:
    if statistics is None:
        raise CalibrationError(
            f"calibration tables without statistics cannot be merged, and {name} has none: "
            f"{_INSTEAD}"
        )
    try:
        return Observer.from_dict(statistics)
    except ValueError as error:
        raise CalibrationError(
            f"the statistics of {name} in a calibration table are damaged ({error}): {_INSTEAD}"
        ) from None


def _means(name: str, parts: Sequence[tuple[CalibrationTable, TensorScale]]) -> tuple[float, ...]:
    given = [(table.samples, scale.means) for table, scale in parts if scale.means]
    if len({len(means) for _, means in given}) > 1:
        raise CalibrationError(f"calibration tables have means of {name} for different channels")
    total = sum(samples for samples, _ in given) or 1
    columns = zip(*(means for _, means in given), strict=True)
    weights = [samples / total for samples, _ in given]
    return tuple(
        float(f"{sum(w * x for w, x in zip(weights, column, strict=True)):.6g}")
        for column in columns
    )
