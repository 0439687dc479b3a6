"""What an engine does, known without a card: its kernels, what each moves and computes with.

A `PlanReport` is made from the builder's log by `read_plan_log` and is stored beside the engine,
so that it can be shown later without building again. Of an engine of full TensorRT, whose log is
not read, `report_of_totals` keeps the sizes, and says of the rest that it is unknown.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from singlecard.engine.plan_arithmetic import arithmetic_of
from singlecard.engine.plan_log import (
    KernelTensor,
    LogEntry,
    NetworkTensor,
    parse_plan_log,
    read_totals,
)
from singlecard.engine.plan_modules import Origin, origins_of
from singlecard.engine.plan_traffic import Touched, buffer_spans, total, touched_by
from singlecard.errors import BuildError

#: Entries of a plan that order kernels or run on the host. They start nothing on the card.
SYNCHRONIZATION = frozenset({"signal", "wait", "shape_call", "jmp", "cjmp"})


@dataclass(frozen=True)
class Kernel:
    """One launch on the card.

    Attributes:
        name: the builder's.
        kind: gemm, correlation (a convolution), kgen (generated code), runtime_fusion, ...
        inputs, constants, outputs: the views that it reads, reads and writes.
        modules: paths of the modules it comes from; the model itself is "".
        ops: names of the ops it holds, as far as known.
        modules_inferred: True where ``modules`` was concluded from neighbouring kernels.
        arithmetic: the type it multiplies in (Half, Int8, ...); None if it has no matrix product,
            convolution or attention.
        flops: operations of these, a multiply-add as two; None if there are none, or unknown.
        bytes_read, bytes_written: what it moves, counted as `plan_traffic` says; None if a shape
            depends on the call.
    """

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    modules: tuple[str, ...]
    ops: tuple[str, ...]
    modules_inferred: bool
    arithmetic: str | None
    flops: int | None
    bytes_read: int | None
    bytes_written: int | None

    @property
    def bytes_moved(self) -> int | None:
        return total((self.bytes_read, self.bytes_written))


@dataclass(frozen=True)
class Synchronization:
    """An entry of the plan that is not a kernel: ``signal``, ``wait``, ``shape_call``, a jump."""

    name: str
    kind: str


@dataclass(frozen=True)
class PlanReport:
    """An engine as its builder describes it. Sizes are in bytes.

    Attributes:
        kernels: in the order in which they are launched, for one optimization profile; None where
            the builder did not list them in a form that is known, so that nothing that follows from
            them is known either.
        synchronization: the entries that are not kernels.
        network_tensors: inputs and outputs, with the ranges of dynamic inputs; empty where
            ``kernels`` is None.
        floor_bytes: what any plan for these weights must move: every constant, network input and
            network output once (of a table that is only looked into, the rows that are read).
            None if a shape depends on the call.
        weights_bytes: constants as stored in the engine; None if the builder did not tell.
        scratch_bytes: memory that the engine needs beside weights, inputs and outputs; None if the
            builder did not tell.
        engine_bytes: the plan's size on disk.
        profiles: number of optimization profiles in the plan, 1 without dynamic shapes.
    """

    kernels: tuple[Kernel, ...] | None
    synchronization: tuple[Synchronization, ...]
    network_tensors: tuple[NetworkTensor, ...]
    floor_bytes: int | None
    weights_bytes: int | None
    scratch_bytes: int | None
    engine_bytes: int
    profiles: int = 1

    @property
    def kernel_count(self) -> int | None:
        return None if self.kernels is None else len(self.kernels)

    @property
    def bytes_moved(self) -> int | None:
        """Sum over kernels; None if they are not known, or a shape depends on the call."""
        if self.kernels is None:
            return None
        return total(kernel.bytes_moved for kernel in self.kernels)

    @property
    def resident_bytes(self) -> int | None:
        """Weights and scratch, all that a card holds of the engine; None if one is not known."""
        return total((self.weights_bytes, self.scratch_bytes))

    @property
    def flops(self) -> int | None:
        """Operations of all products, convolutions and attentions; None if one is not known."""
        if self.kernels is None:
            return None
        return total(kernel.flops for kernel in self.kernels if kernel.arithmetic)

    @property
    def kernels_by_kind(self) -> dict[str, int] | None:
        """Number of kernels of each kind, most frequent first; None if they are not known."""
        if self.kernels is None:
            return None
        return dict(Counter(kernel.kind for kernel in self.kernels).most_common())

    @property
    def arithmetic_by_type(self) -> dict[str, int] | None:
        """Number of kernels that multiply in each type, most frequent first; None as above."""
        if self.kernels is None:
            return None
        types = (kernel.arithmetic for kernel in self.kernels)
        return dict(Counter(dtype for dtype in types if dtype).most_common())

    @property
    def is_dynamic(self) -> bool:
        """Whether sizes depend on the shapes of a call, so that no bytes can be told.

        To know them for one shape, build with a profile whose three shapes are all that shape.
        """
        return self.kernels is not None and self.bytes_moved is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` makes an equal report of them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanReport:
        """Make a report from what `to_dict` returned, also after a way through JSON.

        Raises:
            BuildError: the values are not a report's.
        """
        try:
            return cls(
                kernels=_kernels_from(values["kernels"]),
                synchronization=tuple(
                    Synchronization(**item) for item in values["synchronization"]
                ),
                network_tensors=tuple(
                    NetworkTensor(**_tuples(item)) for item in values["network_tensors"]
                ),
                **{name: values[name] for name in _NUMBERS},
            )
        except (KeyError, TypeError) as error:
            raise BuildError(
                f"a stored plan report does not have the fields of this version ({error!r}): "
                "remove the engine from the cache with 'singlecard cache clear' and build it again"
            ) from error


_NUMBERS = ("floor_bytes", "weights_bytes", "scratch_bytes", "engine_bytes", "profiles")


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples, at every depth."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _kernels_from(values: Iterable[Mapping[str, Any]] | None) -> tuple[Kernel, ...] | None:
    return None if values is None else tuple(_kernel_from(item) for item in values)


def _kernel_from(values: Mapping[str, Any]) -> Kernel:
    plain = _tuples(values)
    for group in ("inputs", "constants", "outputs"):
        plain[group] = tuple(KernelTensor(**item) for item in plain[group])
    return Kernel(**plain)


def read_plan_log(
    messages: Iterable[tuple[object, str]], engine_bytes: int, profile: int = 0
) -> PlanReport:
    """Read the log of one build.

    Args:
        messages: pairs of severity and text, VERBOSE included, of a build with
            ``ProfilingVerbosity.DETAILED``.
        engine_bytes: size of the plan.
        profile: the optimization profile to report, if there are several.

    Raises:
        BuildError: the log does not describe the plan, or in a form that is not known.
    """
    log = parse_plan_log(messages)
    profiles = max((len(tensor.ranges) for tensor in log.network_tensors), default=1) or 1
    entries = [entry for entry in log.entries if entry.profile in (None, profile)]
    spans = buffer_spans(entries)
    touched = [touched_by(entry, spans) for entry in entries]
    kernels = tuple(
        _kernel(entry, origin, moved)
        for entry, origin, moved in zip(entries, origins_of(entries), touched, strict=True)
        if entry.kind not in SYNCHRONIZATION
    )
    lasting = {tensor.name for tensor in log.network_tensors}
    lasting.update(tensor.name for entry in entries for tensor in entry.constants)
    return PlanReport(
        kernels=kernels,
        synchronization=tuple(
            Synchronization(entry.name, entry.kind)
            for entry in entries
            if entry.kind in SYNCHRONIZATION
        ),
        network_tensors=log.network_tensors,
        floor_bytes=total(_once(name, touched, spans) for name in sorted(lasting)),
        weights_bytes=log.weights_bytes,
        scratch_bytes=log.scratch_bytes,
        engine_bytes=engine_bytes,
        profiles=profiles,
    )


def report_of_totals(messages: Iterable[tuple[object, str]], engine_bytes: int) -> PlanReport:
    """Return what is known of a plan whose kernels are not read: sizes, as far as they were logged.

    Args:
        messages: pairs of severity and text of one build, with at most one profile.
        engine_bytes: size of the plan.
    """
    scratch, weights = read_totals(messages)
    return PlanReport(
        kernels=None,
        synchronization=(),
        network_tensors=(),
        floor_bytes=None,
        weights_bytes=weights,
        scratch_bytes=scratch,
        engine_bytes=engine_bytes,
    )


def _kernel(entry: LogEntry, origin: Origin, moved: Mapping[str, Touched]) -> Kernel:
    arithmetic, flops = arithmetic_of(entry)
    return Kernel(
        name=entry.name,
        kind=entry.kind,
        inputs=entry.inputs,
        constants=entry.constants,
        outputs=entry.outputs,
        modules=origin.modules,
        ops=origin.ops,
        modules_inferred=origin.inferred,
        arithmetic=arithmetic,
        flops=flops,
        bytes_read=total(item.read for item in moved.values()),
        bytes_written=total(item.written for item in moved.values()),
    )


def _once(
    name: str, touched: Iterable[Mapping[str, Touched]], spans: Mapping[str, int]
) -> int | None:
    """Return the bytes of a buffer that the kernels touch in all, each byte once."""
    moved = [kernel[name] for kernel in touched if name in kernel]
    size = total(part for item in moved for part in (item.read, item.written))
    return None if size is None else min(size, spans.get(name, 0))
