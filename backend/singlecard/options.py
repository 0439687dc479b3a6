"""What a caller may ask for: a closed list, checked once at the door, immutable after."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from singlecard.errors import OptionError
from singlecard.precision.table import CalibrationTable
from singlecard.sizes import bytes_from_text
from singlecard.targets import parse_targets

Precision = Literal[
    "fp32", "tf32", "fp16", "bf16", "int8", "fp8", "int8-weight", "int4-weight", "auto"
]

#: Precisions in which weights, or what products read, are quantized; the rest is FP16.
QUANTIZED = ("int8", "fp8", "int8-weight", "int4-weight", "auto")

#: Types that a card must have for a precision, where they are not its name.
_TYPES = {"int8-weight": ("int8",), "int4-weight": ("int4",), "auto": ()}

Execution = Literal["auto", "engine", "reference", "eager"]

Build = Literal["now", "background", "never"]

Runtime = Literal["tensorrt", "torch_tensorrt"]

Fallback = Literal["eager", "inductor"]

Specialization = Literal["lazy", "eager", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "execution": get_args(Execution),
    "build": get_args(Build),
    "fallback": get_args(Fallback),
    "runtime": get_args(Runtime),
    "specialization": get_args(Specialization),
}


@dataclass(frozen=True)
class Span:
    """The sizes that one axis of one input takes: smallest, usual and largest."""

    input: str
    axis: int
    smallest: int
    usual: int
    largest: int


@dataclass(frozen=True)
class Options:
    """Options of ``torch.compile(model, backend="singlecard", options={...})``.

    Attributes:
        precision: ``"fp32"``, ``"tf32"`` (FP32 with TF32 matrix products), ``"fp16"`` or
            ``"bf16"``: what FP32 parts of the model compute with. Tensors that the model itself
            keeps in another type keep it. Inputs and outputs keep their types always.
            ``"int8"`` and ``"fp8"`` round what products read, with scales from ``calibration``,
            where the plan rewards it; ``"int8-weight"`` and ``"int4-weight"`` store weights so;
            ``"auto"`` takes what ``calibration`` assigns to each op. The rest computes in FP16.
        calibration: a table of `singlecard.calibrate`, or the path of its file. With ``"fp16"`` it
            tells which ops leave FP16's range.
        keep_fp32: ops that compute in FP32 whatever the precision, by module and op, such as
            ``("encoder.layer.3.output:add",)``; a module alone stands for all its ops.
        sparse_weights: let the builder use kernels for weights with 2:4 sparsity.
        targets: cards that engines are for, such as ``("sm86", "sm89")``. None: the card at hand,
            or with ``build`` on the command line a portable engine (Ampere and later).
        execution: ``"auto"`` runs engines on a card that the flavour supports and eager PyTorch
            elsewhere; ``"engine"`` insists on the card; ``"reference"`` runs the network's
            arithmetic with PyTorch ops, on any device; ``"eager"`` builds engines where targets
            are given, and answers with PyTorch.
        fallback: what runs the parts that engines do not: ``"eager"`` PyTorch, or ``"inductor"``,
            PyTorch's own compiler, for whole graphs where no card serves engines too. Calls that an
            engine cannot take run in eager PyTorch in any case.
        runtime: ``"tensorrt"`` runs engines itself; ``"torch_tensorrt"`` through Torch-TensorRT's
            C++ runtime, whose modules ``torch.export`` can save.
        strict: raise instead of leaving a part of the model to eager PyTorch.
        demote_float64: compute the model's float64 parts in FP32, which engines have. Without it
            they stay in eager PyTorch.
        build: ``"now"`` builds what the cache does not have before the first answer;
            ``"background"`` answers in eager PyTorch meanwhile, and with engines once they are
            ready; ``"never"`` runs what is cached, and the rest in eager PyTorch.
        cache_dir: folder of built engines. None: ``SINGLECARD_CACHE`` or the user's cache folder.
        cache_limit: what the folder may hold, in bytes or as ``"20GB"``; beyond it, engines that
            were not used for longest are removed, but none that a process has open. None:
            ``SINGLECARD_CACHE_LIMIT``, or no limit.
        remote_cache: a folder of engines that machines share, as fsspec writes it, such as
            ``"s3://bucket/engines"``: asked for what ``cache_dir`` does not have, and given what is
            built. None: ``SINGLECARD_REMOTE_CACHE``, or none.
        signing_key: a file whose content is the secret that engines in ``remote_cache`` are signed
            with; one without its signature is not loaded. None: ``SINGLECARD_SIGNING_KEY``, which
            names a file, or none.
        min_block_size: an engine with fewer ops than this is left to eager PyTorch. None: where a
            graph is cut, engines that are not worth a call by an estimate; 1: none.
        exclude_ops: ops that stay in eager PyTorch, such as ``("aten.softmax",)``: by packet or by
            overload, as ``explain`` names them.
        exclude_modules: modules whose ops stay in eager PyTorch, with all that lies in them, such
            as ``("encoder.layer.3", "decoder.*.norm")``.
        profiles: sizes that dynamic axes take, by input and axis: smallest, usual and largest, as
            in ``{"input_ids": {0: (1, 8, 32), 1: (1, 128, 512)}}``. What a module is given by
            position is named by its place, ``0``, and an input inside of a container by its way,
            ``"batch.images.0"``. A call outside of its range runs in eager PyTorch. None: the
            ranges that PyTorch knows.
        workspace_bytes: limit for the scratch memory of one engine. None: no limit of ours.
        memory_budget: GPU memory that the weights of all engines of the process may take on a card,
            in bytes or as ``"8GiB"``. A graph with larger weights streams from host memory what
            exceeds it; graphs that do not fit together take turns. Of different budgets the
            smallest counts. None: all weights stay on the card.
        offload_weights: move the model's own weights to host memory when engines that hold them are
            loaded: they stay tensors on the card, and what reads them reads over the bus.
            `singlecard.restore_weights` is the way back. None: where they take more than a quarter
            of the card's memory.
        cuda_graphs: record the kernels of a call once, and launch them as one.
        specialization: when TensorRT for RTX compiles kernels for the sizes of a call with dynamic
            shapes: ``"lazy"`` behind calls, ``"eager"`` before the first, ``"none"`` never.
    """

    precision: Precision = "fp32"
    calibration: CalibrationTable | None = None
    keep_fp32: tuple[str, ...] = ()
    sparse_weights: bool = False
    targets: tuple[str, ...] | None = None
    execution: Execution = "auto"
    fallback: Fallback = "eager"
    runtime: Runtime = "tensorrt"
    strict: bool = False
    demote_float64: bool = False
    build: Build = "now"
    cache_dir: Path | None = None
    cache_limit: int | None = None
    remote_cache: str | None = None
    signing_key: Path | None = None
    min_block_size: int | None = None
    exclude_ops: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    profiles: tuple[Span, ...] = ()
    workspace_bytes: int | None = None
    memory_budget: int | None = None
    offload_weights: bool | None = None
    cuda_graphs: bool = False
    specialization: Specialization = "lazy"

    @classmethod
    def parse(cls, given: Mapping[str, Any] | Options | None) -> Options:
        """Check a mapping of options.

        Raises:
            OptionError: a key is unknown (the message names the nearest valid one), or a value
                does not fit.
        """
        if isinstance(given, Options):
            return given
        names = [field.name for field in dataclasses.fields(cls)]
        values = dict(given or {})
        for key in values:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, 1, 0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(names)}"
                raise OptionError(f"unknown option {key!r}: {hint}")
        values = {key: value for key, value in values.items() if value is not None}
        for key, choices in _CHOICES.items():
            if key in values and values[key] not in choices:
                close = difflib.get_close_matches(str(values[key]), choices, 1, 0.4)
                hint = f"did you mean {close[0]!r}? " if close else ""
                raise OptionError(
                    f"option {key}={values[key]!r} is not valid: {hint}it takes one of "
                    f"{', '.join(choices)}"
                )
        if "targets" in values:
            if not isinstance(values["targets"], (str, list, tuple)):
                raise OptionError(
                    f"option targets={values['targets']!r} is not valid: it takes names of cards, "
                    "such as ('sm86', 'sm89')"
                )
            values["targets"] = parse_targets(values["targets"])
        if "calibration" in values:
            values["calibration"] = _table(values["calibration"])
        _check_calibration(values.get("precision", "fp32"), values.get("calibration"))
        for key, what in (("cache_dir", "a folder"), ("signing_key", "a file")):
            if key in values:
                if not isinstance(values[key], (str, os.PathLike)):
                    raise OptionError(f"option {key}={values[key]!r} is not valid: it takes {what}")
                values[key] = Path(values[key]).expanduser()
        if not isinstance(values.get("remote_cache", ""), str):
            raise OptionError(
                f"option remote_cache={values['remote_cache']!r} is not valid: it takes an address "
                "such as 's3://bucket/engines' or 'file:///shared/engines'"
            )
        for key in ("exclude_ops", "exclude_modules", "keep_fp32"):
            if key in values:
                values[key] = _names(key, values[key])
        for name in values.get("exclude_ops", ()):
            _check_op(name)
        if "profiles" in values:
            values["profiles"] = _spans(values["profiles"])
        _check_number(values, "min_block_size", 1)
        _check_number(values, "workspace_bytes", 1)
        for key in ("cache_limit", "memory_budget"):
            if key in values:
                values[key] = _size(key, values[key])
        for key in (
            "strict", "demote_float64", "sparse_weights", "offload_weights", "cuda_graphs"
        ):  # fmt: skip
            if not isinstance(values.get(key, False), bool):
                raise OptionError(f"option {key}={values[key]!r} is not valid: True or False")
        options = cls(**values)
        if options.runtime != "tensorrt":
            _check_own_runtime(options)
        return options


def _check_own_runtime(options: Options) -> None:
    """Refuse what another runtime than ours does not do, instead of leaving it out in silence."""
    for key in ("memory_budget", "offload_weights", "cuda_graphs", "specialization"):
        value = getattr(options, key)
        if value != Options.__dataclass_fields__[key].default:
            raise OptionError(
                f"option {key}={value!r} is given with runtime={options.runtime!r}, whose engines "
                f"are not run by singlecard: leave out one of the two"
            )


def types_of(precision: str) -> tuple[str, ...]:
    """Return the types that a card must have for a precision, as `check_types` takes them."""
    return _TYPES.get(precision, (precision,))


def _table(value: Any) -> CalibrationTable:
    if isinstance(value, CalibrationTable):
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError(
            f"option calibration={value!r} is not valid: it takes what singlecard.calibrate "
            "returned, or the path of its file"
        )
    return CalibrationTable.load(value)


def _check_calibration(precision: str, table: CalibrationTable | None) -> None:
    if precision in ("int8", "fp8", "auto") and table is None:
        raise OptionError(
            f"precision={precision!r} needs scales: make them with singlecard.calibrate(model, "
            "data), and give them as option calibration"
        )
    if precision == "auto" and table is not None and not table.assignment:
        raise OptionError(
            "precision='auto' takes what the calibration table assigns to each op, and this table "
            "assigns nothing: make one with singlecard.search_precision(model, data)"
        )
    if table is not None and precision not in ("fp16", *QUANTIZED):
        raise OptionError(
            f"option calibration is given, and precision={precision!r} uses none: ask for one of "
            f"fp16, {', '.join(QUANTIZED)}"
        )


def _size(key: str, value: Any) -> int:
    """Return a number of bytes that may be given as a text."""
    if isinstance(value, str):
        try:
            return bytes_from_text(value)
        except ValueError as error:
            raise OptionError(f"option {key} is not valid: {error}") from error
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise OptionError(
            f"option {key}={value!r} is not valid: it takes bytes, or a text such as '8GiB'"
        )
    return value


def _check_number(values: Mapping[str, Any], key: str, low: int) -> None:
    value = values.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
        raise OptionError(f"option {key}={value!r} is not valid: it takes an integer >= {low}")


def _spans(given: Any) -> tuple[Span, ...]:
    """Return the spans of ``{input: {axis: (smallest, usual, largest)}}``."""
    if isinstance(given, tuple) and all(isinstance(item, Span) for item in given):
        return given
    form = "{input: {axis: (smallest, usual, largest)}}"
    if not isinstance(given, Mapping):
        raise OptionError(f"option profiles={given!r} is not valid: it takes {form}")
    spans = []
    for name, axes in given.items():
        if not (isinstance(name, str) or _is_size(name, 0)) or not isinstance(axes, Mapping):
            raise OptionError(f"option profiles has {name!r}: {axes!r}, it takes {form}")
        for axis, sizes in axes.items():
            where = f"option profiles, axis {axis!r} of {name}"
            if not _is_size(axis, 0):
                raise OptionError(f"{where}: an axis is an integer >= 0")
            if not isinstance(sizes, (list, tuple)) or len(sizes) != 3:
                raise OptionError(f"{where}: got {sizes!r}, it takes (smallest, usual, largest)")
            if not all(_is_size(size, 1) for size in sizes):
                raise OptionError(f"{where}: got {sizes!r}, sizes are integers >= 1")
            low, usual, high = sizes
            if not low <= usual <= high:
                raise OptionError(
                    f"{where}: got {low}, {usual}, {high}, it takes smallest <= usual <= largest"
                )
            spans.append(Span(str(name), axis, low, usual, high))
    return tuple(spans)


def _is_size(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _names(key: str, given: Any) -> tuple[str, ...]:
    """Return a list of names; one name, or several with commas between, may stand for it."""
    items = given.split(",") if isinstance(given, str) else given
    if not isinstance(items, (list, tuple, set, frozenset)) or not all(
        isinstance(item, str) and item.strip() for item in items
    ):
        raise OptionError(f"option {key}={given!r} is not valid: it takes a list of names")
    return tuple(item.strip() for item in items)


def _check_op(name: str) -> None:
    import torch  # seconds, which a command that only prints its help need not wait

    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, space), packet, None) if packet else None
    if found is None or (overload and overload not in found.overloads()):
        close = difflib.get_close_matches(packet or space, dir(torch.ops.aten), 1, 0.6)
        hint = f"did you mean 'aten.{close[0]}'?" if close else "such as 'aten.softmax'"
        raise OptionError(f"option exclude_ops names {name!r}, which is no op of PyTorch: {hint}")
