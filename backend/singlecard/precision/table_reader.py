"""Checks what a calibration table's file holds: people write into it, and files get cut off."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from singlecard.errors import CalibrationError
from singlecard.precision.table import (
    FORMAT,
    KINDS,
    VECTORS,
    VERSION,
    CalibrationTable,
    Fingerprint,
    TensorScale,
    listed,
    tensors_of,
)

_NEEDED = ("method", "samples", "graphs", "tensors")
_KNOWN = ("format", "version", *_NEEDED, "percentile", "assignment", "keep_fp32")
_OF_TENSOR = ("threshold", "largest", *VECTORS, "statistics")


class Reader:
    """Makes a table of plain values, and says of which file and entry what is wrong."""

    def __init__(self, source: str) -> None:
        self.source = source

    def wrong(self, text: str) -> CalibrationError:
        return CalibrationError(f"the calibration table {self.source} is not valid: {text}")

    def table(self, values: Any) -> CalibrationTable:
        """Return the table.

        Raises:
            CalibrationError: the values are none.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise self.wrong(f'it has no "format": "{FORMAT}"')
        if values.get("version") != VERSION:
            raise CalibrationError(
                f"the calibration table {self.source} has version {values.get('version')!r}, this "
                f"singlecard reads version {VERSION}: calibrate again, or use the singlecard that "
                "wrote it"
            )
        missing = [key for key in _NEEDED if key not in values]
        if missing:
            raise self.wrong(f"it lacks {', '.join(missing)}")
        self.only(values, _KNOWN, "it")
        if not isinstance(values["method"], str):
            raise self.wrong(f"method is {values['method']!r}, no name")
        samples = values["samples"]
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise self.wrong(f"samples is {samples!r}, no count")
        share = values.get("percentile")
        if share is not None and not 0 < self.number(share, "percentile") <= 100:
            raise self.wrong(f"percentile is {share!r}, not above 0 and at most 100")
        graphs = self.graphs(values["graphs"])
        keep = values.get("keep_fp32", [])
        if not isinstance(keep, list) or not all(isinstance(name, str) for name in keep):
            raise self.wrong("keep_fp32 is no list of names")
        return CalibrationTable(
            method=values["method"],
            samples=samples,
            graphs=graphs,
            tensors=self.tensors(values, graphs),
            assignment=self.assignment(values, graphs),
            keep_fp32=tuple(keep),
            percentile=share,
        )

    def graphs(self, values: Any) -> tuple[Fingerprint, ...]:
        if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
            raise self.wrong("graphs is no list of fingerprints")
        for graph in values:
            for name, entry in graph.items():
                tensors = entry.get("tensors") if isinstance(entry, dict) else None
                if not isinstance(tensors, list) or not all(isinstance(x, str) for x in tensors):
                    raise self.wrong(f"graphs has no list of tensors for {name}")
        return tuple(values)

    def assignment(
        self, values: Mapping[str, Any], graphs: Sequence[Fingerprint]
    ) -> dict[str, str]:
        found = self.mapping(values, "assignment")
        kinds = (*KINDS, "fp16", "fp32")
        known = list(dict.fromkeys(name for graph in graphs for name in graph))
        for name, precision in found.items():
            if precision not in kinds:
                raise self.wrong(
                    f"{name} is assigned to {precision!r}, not to one of {', '.join(kinds)}"
                )
        self.only(found, known, "assignment")
        return found

    def tensors(
        self, values: Mapping[str, Any], graphs: Sequence[Fingerprint]
    ) -> dict[str, TensorScale]:
        found = self.mapping(values, "tensors")
        self.only(found, [name for graph in graphs for name in tensors_of(graph)], "tensors")
        readers: dict[str, list[Mapping[str, Any]]] = {}
        for graph in graphs:
            for op in graph.values():
                for name in op["tensors"]:
                    readers.setdefault(name, []).append(op)
        return {name: self.tensor(name, entry, readers[name]) for name, entry in found.items()}

    def tensor(self, name: str, entry: Any, readers: Sequence[Mapping[str, Any]]) -> TensorScale:
        if not isinstance(entry, dict):
            raise self.wrong(f"{name} has no threshold")
        self.only(entry, _OF_TENSOR, name)
        threshold = self.positive(entry.get("threshold"), f"the threshold of {name}")
        largest = self.positive(entry.get("largest", threshold), f"the largest value of {name}")
        parts = {}
        for part in VECTORS:
            what = f"the {part} of {name}"
            parts[part] = self.numbers(entry.get(part, []), what)
            if part != "means":
                for value in parts[part]:
                    self.positive(value, what)
            if parts[part]:
                self.channels(part, what, len(parts[part]), readers)
        statistics = entry.get("statistics")
        if statistics is not None and not isinstance(statistics, dict):
            raise self.wrong(f"the statistics of {name} are {type(statistics).__name__}, no object")
        return TensorScale(threshold, largest, **parts, statistics=statistics)

    def channels(
        self, part: str, what: str, count: int, readers: Sequence[Mapping[str, Any]]
    ) -> None:
        """Hold the length of a vector against the weights that read its tensor."""
        for op in readers:
            shape = op.get("shape")
            if part != "means" and op.get("op") != "linear":
                raise self.wrong(f"{what} is not possible: {op.get('op')} reads that tensor")
            if not isinstance(shape, list) or len(shape) < 2 or not isinstance(shape[1], int):
                continue
            linear = op.get("op") == "linear"
            if count != shape[1] if linear else count % max(shape[1], 1):  # groups of channels
                raise self.wrong(f"{what} has {count} numbers, and its weight {shape[1]} channels")

    def only(self, values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        """Refuse names that nothing has."""
        extra = [name for name in values if name not in known]
        if extra:
            close = difflib.get_close_matches(extra[0], known, 1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise self.wrong(f"{where} has {listed(extra)}, which nothing reads{hint}")

    def mapping(self, values: Mapping[str, Any], key: str) -> dict[str, Any]:
        found = values.get(key, {})
        if not isinstance(found, dict):
            raise self.wrong(f"{key} is {type(found).__name__}, no object")
        return found

    def positive(self, value: Any, what: str) -> float:
        number = self.number(value, what)
        if not number > 0:
            raise self.wrong(f"{what} is {value!r}, and must be above zero")
        return number

    def number(self, value: Any, what: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(f"{what} is {value!r}, no number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.wrong(f"{what} is not finite")
        return number

    def numbers(self, values: Any, what: str) -> tuple[float, ...]:
        if not isinstance(values, list):
            raise self.wrong(f"{what} is {values!r}, no list of numbers")
        return tuple(self.number(value, what) for value in values)
