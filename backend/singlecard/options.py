"""What a caller may ask for: a closed list, checked once at the door, immutable after."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from singlecard.axes import axes_of_input, range_from
from singlecard.checking import (
    address_from,
    bytes_from,
    choice_from,
    count_from,
    flag_from,
    names_from,
    path_from,
    shown,
    wrong,
)
from singlecard.errors import OptionError
from singlecard.precision.table import CalibrationTable
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
    """The sizes that one axis of one input takes: min, opt and max."""

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
        profiles: sizes that dynamic axes take, by input and axis: min, opt and max, as
            in ``{"input_ids": {0: (1, 8, 32), 1: (1, 128, 512)}}``. An input is named by its
            parameter or its place, ``0``, and one inside of a container by its way,
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
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(
                f"options={shown(given)} is not valid: it takes a dict from names to values, such "
                'as {"precision": "fp16"}'
            )
        names = [field.name for field in dataclasses.fields(cls)]
        for key in given or {}:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, 1, 0.4)
                hint = f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(names)}"
                raise OptionError(f"unknown option {shown(key)}: {hint}")
        return cls(**(given or {}))

    def __post_init__(self) -> None:
        """Check every value, and bring it to its one form."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            value = field.default if value is None else _checked(field.name, value)
            object.__setattr__(self, field.name, value)
        _check_calibration(self.precision, self.calibration)
        if self.runtime != "tensorrt":
            _check_own_runtime(self)


def _checked(name: str, value: Any) -> Any:
    """Return the value of an option in its one form.

    Raises:
        OptionError: it does not fit.
    """
    if name in _CHOICES:
        return choice_from(name, value, _CHOICES[name])
    if name in _FLAGS:
        return flag_from(name, value)
    if name in _PATHS:
        return path_from(name, value, _PATHS[name])
    if name in ("min_block_size", "workspace_bytes"):
        return count_from(name, value, 1)
    if name in ("cache_limit", "memory_budget"):
        return bytes_from(name, value)
    if name in ("exclude_ops", "exclude_modules", "keep_fp32"):
        names = names_from(name, value)
        for item in names if name == "exclude_ops" else ():
            _check_op(item)
        return names
    return _OWN[name](value)


_FLAGS = ("strict", "demote_float64", "sparse_weights", "offload_weights", "cuda_graphs")

_PATHS = {"cache_dir": "a folder", "signing_key": "a file"}


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


def _targets(value: Any) -> tuple[str, ...]:
    takes = "it takes names of cards, such as ('sm86', 'sm89'), or 'portable'"
    if not isinstance(value, (str, list, tuple)):
        raise wrong("targets", value, takes)
    items = value.split(",") if isinstance(value, str) else value
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise wrong("targets", value, takes)
    return parse_targets(items)


def _table(value: Any) -> CalibrationTable:
    if isinstance(value, CalibrationTable):
        return value
    takes = "what singlecard.calibrate returned, or the path of its file"
    return CalibrationTable.load(path_from("calibration", value, takes))


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


def _spans(given: Any) -> tuple[Span, ...]:
    """Return the spans of ``{input: {axis: (min, opt, max)}}``, in the order of their names."""
    if isinstance(given, tuple) and all(isinstance(item, Span) for item in given):
        return given
    form = "{input: {axis: (min, opt, max)}}"
    if not isinstance(given, Mapping):
        raise wrong("profiles", given, f"it takes {form}")
    spans = []
    for name, axes in given.items():
        if isinstance(axes, str):
            axes = axes_of_input(str(name), axes)
        if not (isinstance(name, str) or _is_size(name, 0)) or not isinstance(axes, Mapping):
            raise OptionError(f"option profiles has {shown(name)}: {shown(axes)}, it takes {form}")
        for axis, sizes in axes.items():
            where = f"option profiles, axis {axis!r} of {name}"
            if not _is_size(axis, 0):
                raise OptionError(f"{where}: an axis is an integer >= 0")
            found = range_from(sizes, where)
            if found is None or found.min is None or found.max is None:
                raise OptionError(f"{where} has {sizes!r}: an engine's range is (min, opt, max)")
            spans.append(Span(str(name), axis, *found.closed(found.min, found.max)))
    return tuple(sorted(spans, key=lambda span: (span.input, span.axis)))


def _is_size(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _check_op(name: str) -> None:
    import torch  # seconds, which a command that only prints its help need not wait

    importlib.import_module("singlecard.capture.ops")  # ops of ours, which explain names
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, space, None), packet, None) if packet else None
    known = isinstance(found, (torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator))
    if not known or (overload and overload not in getattr(found, "overloads", tuple)()):
        close = difflib.get_close_matches(packet or space, dir(torch.ops.aten), 1, 0.6)
        hint = f"did you mean 'aten.{close[0]}'?" if close else "such as 'aten.softmax'"
        raise OptionError(f"option exclude_ops names {name!r}, which is no op of PyTorch: {hint}")


#: What checks an option that is like no other.
_OWN: dict[str, Callable[[Any], Any]] = {
    "targets": _targets,
    "calibration": _table,
    "remote_cache": functools.partial(address_from, "remote_cache"),
    "profiles": _spans,
}
