"""The calibration table: what quantization knows of a model, as a file that people can read.

It is made by `singlecard.calibrate`, and read here. Its JSON holds names of tensors and ops as
`singlecard.precision.points` gives them, so that any capture of the model finds its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from singlecard.errors import CalibrationError
from singlecard.files import MOST_TEXT, read_file

FORMAT = "singlecard.calibration"
VERSION = 1

#: What an op may be assigned to, beside "fp16" and "fp32", which leave it as it is.
KINDS = ("int8", "fp8", "int8-weight", "int4-weight")

#: What a tensor has a number for each channel of.
VECTORS = ("divisor", "weights_divisor", "means")

#: How many entries of a list are written out in a message.
_SHOWN = 5


@dataclass(frozen=True)
class TensorScale:
    """What is known of one tensor that is computed at run time.

    Attributes:
        threshold: the magnitude that the largest code stands for, chosen by the method, or by hand.
        largest: the largest magnitude seen, before any divisor.
        divisor: numbers, one for each channel of the last axis, that the tensor is divided by and
            its weights multiplied with before both are quantized; empty for none. ``threshold`` is
            that of the quotient.
        weights_divisor: the same, where only weights are quantized.
        means: the mean of each channel (the last axis; the second of a convolution's input); empty
            for none. The error that a weight's rounding makes of it is taken from the bias.
        statistics: what was seen, mergeable; None where it was not kept.
    """

    threshold: float
    largest: float
    divisor: tuple[float, ...] = ()
    weights_divisor: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    statistics: Mapping[str, Any] | None = field(default=None, repr=False)


#: For each op that can be quantized, by name, what its scales depend on.
Fingerprint = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class CalibrationTable:
    """Scales for one model.

    Attributes:
        method: how thresholds were chosen, such as ``"entropy"``.
        samples: calls of the model that were observed.
        graphs: the fingerprint of each graph that was captured.
        tensors: scales by tensor name.
        assignment: for an op, the precision that a search or a person chose for it; an op that is
            not named takes that of the option ``precision``.
        keep_fp32: ops whose values left FP16's range, by name; they compute in FP32.
        percentile: the share of elements, in percent, where that is the method.
    """

    method: str
    samples: int
    graphs: tuple[Fingerprint, ...]
    tensors: Mapping[str, TensorScale]
    assignment: Mapping[str, str] = field(default_factory=dict)
    keep_fp32: tuple[str, ...] = ()
    percentile: float | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Tensors that ops read, and that the table has no scale for: those ops stay in FP16."""
        names = {name: None for graph in self.graphs for name in tensors_of(graph)}
        return tuple(name for name in names if name not in self.tensors)

    def check(self, fingerprint: Fingerprint) -> None:
        """Compare with the fingerprint of a graph.

        Raises:
            CalibrationError: no graph of the table is this one; the message says what differs.
        """
        if not fingerprint or any(_plain(graph) == _plain(fingerprint) for graph in self.graphs):
            return  # a part of a model that has nothing to quantize has nothing to compare
        nearest: Fingerprint = max(
            self.graphs, key=lambda graph: len(graph.keys() & fingerprint.keys()), default={}
        )
        raise CalibrationError(
            "the calibration table was made for another model: "
            f"{'; '.join(differences(nearest, fingerprint))}. Calibrate this model with "
            "singlecard.calibrate(model, data)"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; the file is whole, or as it was before.

        Raises:
            CalibrationError: the file cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(f"{text_from_values(self.to_dict())}\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise CalibrationError(
                f"the calibration table {path} cannot be written ({error.strerror or error}): name "
                "a file in an existing folder"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CalibrationTable:
        """Read a table.

        Raises:
            CalibrationError: there is no such file, it is cut off, or it is no valid table.
        """
        try:
            text = read_file(path, MOST_TEXT).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(
                f"the calibration table {path} cannot be read: {error}"
            ) from None
        try:
            values = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(
                f"the calibration table {path} is cut off or damaged ({error}): calibrate again"
            ) from None
        return cls.from_dict(values, str(path))

    def to_dict(self) -> dict[str, Any]:
        tensors = {}
        for name, scale in self.tensors.items():
            entry: dict[str, Any] = {"threshold": scale.threshold, "largest": scale.largest}
            for part in VECTORS:
                if getattr(scale, part):
                    entry[part] = list(getattr(scale, part))
            if scale.statistics is not None:
                entry["statistics"] = dict(scale.statistics)
            tensors[name] = entry
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "samples": self.samples,
            **({} if self.percentile is None else {"percentile": self.percentile}),
            "tensors": tensors,
            "assignment": dict(self.assignment),
            "keep_fp32": list(self.keep_fp32),
            "graphs": [_plain(graph) for graph in self.graphs],
        }

    @classmethod
    def from_dict(cls, values: Any, source: str = "given") -> CalibrationTable:
        """Return the table of plain values, each of them checked.

        Raises:
            CalibrationError: the values are no valid table; the message names the entry.
        """
        from singlecard.precision.table_reader import Reader  # which makes tables in turn

        return Reader(source).table(values)


def differences(known: Fingerprint, met: Fingerprint) -> list[str]:
    """Say what differs between the fingerprint in a table and that of a model."""
    result = []
    missing, extra = (sorted(a.keys() - b.keys()) for a, b in ((met, known), (known, met)))
    if missing:
        result.append(f"it lacks {listed(missing)}, which the model has")
    if extra:
        result.append(f"it has {listed(extra)}, which the model lacks")
    both = sorted(known.keys() & met.keys())
    for part, text in (("op", "is another op"), ("shape", "has another shape")):
        if found := [name for name in both if known[name].get(part) != met[name].get(part)]:
            pairs = f"{known[found[0]].get(part)} in the table, {met[found[0]].get(part)} here"
            result.append(f"{listed(found)} {text} ({pairs})")
    same = [name for name in both if known[name].get("shape") == met[name].get("shape")]
    if found := [n for n in same if known[n].get("weights") != met[n].get("weights")]:
        result.append(f"the weights of {listed(found)} have changed")
    if not result:
        result.append("its ops read other tensors")
    return result


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _plain(graph: Fingerprint) -> dict[str, dict[str, Any]]:
    return {name: dict(entry) for name, entry in graph.items()}


def tensors_of(graph: Fingerprint) -> list[str]:
    """Return the tensors that a graph's ops read, by name."""
    return [str(name) for entry in graph.values() for name in entry.get("tensors", ())]


def text_from_values(value: Any, margin: str = "") -> str:
    """Write plain values as JSON, with one line for each entry and for each list of numbers."""
    inner = f"{margin} "
    if isinstance(value, Mapping) and value:
        rows = [
            f"{inner}{json.dumps(key)}: {text_from_values(item, inner)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        rows = [f"{inner}{text_from_values(item, inner)}" for item in value]
        return "[\n" + ",\n".join(rows) + f"\n{margin}]"
    return json.dumps(value, allow_nan=False)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number that a table may hold")
