"""A plan report as rows of text: what the terminal and the HTML page both show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from singlecard.engine.cards import Card
from singlecard.engine.plan_log import NetworkTensor
from singlecard.engine.plan_report import Kernel, PlanReport
from singlecard.engine.plan_traffic import total
from singlecard.engine.roofline import roofline

UNKNOWN = "unknown"

#: More names than this in one cell are counted, not listed.
_MOST_NAMES = 4


class FallbackRow(NamedTuple):
    """An op that stays in PyTorch for one reason, so many times; ``line`` is the user's own."""

    op: str
    reason: str
    times: int
    line: str = ""


@dataclass(frozen=True)
class Grid:
    """A table before it is drawn.

    Attributes:
        title: its heading.
        columns: names of the columns; one that ends in ``>`` holds numbers, and is set right.
        rows: texts, one for each column.
        note: a sentence below, or "".
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def format_bytes(size: int | None) -> str:
    """Return a size in powers of 1000, as memory bandwidth is given.

    >>> format_bytes(64_074_324)
    '64.1 MB'
    """
    return UNKNOWN if size is None else _scaled(size, ("B", "kB", "MB", "GB", "TB"))


def format_count(count: int | None) -> str:
    return UNKNOWN if count is None else str(count)


def format_flops(flops: int | None) -> str:
    """Return a number of operations, such as ``8.25 GFLOP``."""
    return (
        UNKNOWN if flops is None else _scaled(flops, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"))
    )


def format_seconds(seconds: float) -> str:
    """Return a time, such as ``0.43 ms``."""
    return f"{seconds * 1e6:.1f} µs" if seconds < 1e-4 else f"{seconds * 1e3:.2f} ms"


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    return f"{value:.3g} {units[power]}"


def _share(part: int | None, whole: int | None) -> str:
    return f"{part / whole:.0%}" if part is not None and whole else ""


def module_text(modules: Sequence[str], inferred: bool = False) -> str:
    """Return the modules of a kernel in one line.

    >>> module_text(("layer.0.attention.query", "layer.0.attention.key"))
    'layer.0.attention.{query, key}'
    """
    if not modules:
        return UNKNOWN
    paths = [path.split(".") if path else [] for path in modules]
    shared = 0
    while all(len(path) > shared + 1 for path in paths) and _agree(paths, shared):
        shared += 1
    names = [".".join(path[shared:]) or "(model)" for path in paths]
    if len(names) > _MOST_NAMES:
        names = [*names[: _MOST_NAMES - 1], f"{len(names) - _MOST_NAMES + 1} more"]
    prefix = "".join(f"{part}." for part in paths[0][:shared])
    text = (
        f"{prefix}{{{', '.join(names)}}}"
        if shared and len(names) > 1
        else prefix + ", ".join(names)
    )
    return f"~ {text}" if inferred else text


def _agree(paths: Sequence[Sequence[str]], place: int) -> bool:
    return len(paths) > 1 and len({path[place] for path in paths}) == 1


def overview_grid(plans: Sequence[tuple[str, PlanReport]]) -> Grid:
    """One row for each engine."""
    rows = [
        (
            name,
            format_count(plan.kernel_count),
            format_bytes(plan.bytes_moved),
            format_bytes(plan.floor_bytes),
            format_bytes(plan.scratch_bytes),
            format_bytes(plan.engine_bytes),
        )
        for name, plan in plans
    ]
    columns = ("engine", "kernels>", "moves>", "floor>", "scratch>", "size>")
    return Grid("Engines", columns, tuple(rows))


def totals(report: PlanReport) -> list[tuple[str, str, str]]:
    """Return the plan's totals as ``(name, value, explanation)``."""
    moved, floor = report.bytes_moved, report.floor_bytes
    factor = f"{moved / floor:.2f} times the floor" if moved and floor else ""
    if report.is_dynamic:
        factor = "sizes depend on the shapes of a call"
    waits = len(report.synchronization)
    remark = f"and {waits} synchronizations" if waits else ""
    if report.kernels is None:
        remark = "the list of full TensorRT is not read"
    return [
        ("kernels", format_count(report.kernel_count), remark),
        ("moves", format_bytes(moved), factor),
        ("floor", format_bytes(floor), "weights, inputs and outputs once"),
        ("multiplies", format_flops(report.flops), "products, convolutions, attention"),
        ("scratch", format_bytes(report.scratch_bytes), "beside weights, inputs, outputs"),
        ("weights", format_bytes(report.weights_bytes), "as stored in the engine"),
        ("engine", format_bytes(report.engine_bytes), "on disk"),
    ]


def kinds_grid(report: PlanReport) -> Grid:
    """Kernels by kind, with the traffic of each kind."""
    rows = []
    kernels = report.kernels or ()
    for kind, count in (report.kernels_by_kind or {}).items():
        size = total(kernel.bytes_moved for kernel in kernels if kernel.kind == kind)
        rows.append((kind, str(count), format_bytes(size), _share(size, report.bytes_moved)))
    return Grid("Kernels by kind", ("kind", "kernels>", "moves>", "share>"), tuple(rows))


def arithmetic_grid(report: PlanReport) -> Grid:
    """Kernels by the type that they multiply in."""
    rows = []
    kernels = report.kernels or ()
    for dtype, count in (report.arithmetic_by_type or {}).items():
        flops = total(kernel.flops for kernel in kernels if kernel.arithmetic == dtype)
        rows.append((dtype, str(count), format_flops(flops), _share(flops, report.flops)))
    note = "what the kernels really read, whatever was asked for"
    columns = ("type", "kernels>", "operations>", "share>")
    return Grid("Arithmetic of products, convolutions, attention", columns, tuple(rows), note)


def kernels_grid(report: PlanReport, top: int | None = None) -> Grid:
    """The kernels that move most, most first; with ``top=None`` all, in the order of launch."""
    kernels = list(report.kernels or ())
    if top is not None:
        kernels = sorted(kernels, key=lambda kernel: -(kernel.bytes_moved or 0))[:top]
    rows = [
        (
            module_text(kernel.modules, kernel.modules_inferred),
            _ops_text(kernel),
            kernel.kind,
            kernel.arithmetic or "",
            format_flops(kernel.flops) if kernel.arithmetic else "",
            format_bytes(kernel.bytes_moved),
            _share(kernel.bytes_moved, report.bytes_moved),
        )
        for kernel in kernels
    ]
    inferred = any(kernel.modules_inferred for kernel in kernels)
    title = "All kernels" if top is None else "Kernels that move most"
    columns = ("module", "ops", "kind", "type", "operations>", "moves>", "share>")
    note = "~ concluded from the kernels before or after it" if inferred else ""
    return Grid(title, columns, tuple(rows), note)


def _ops_text(kernel: Kernel) -> str:
    ops = [op.removeprefix("aten.") for op in kernel.ops]
    if len(ops) > _MOST_NAMES:
        ops = [*ops[: _MOST_NAMES - 1], f"{len(ops) - _MOST_NAMES + 1} more"]
    return ", ".join(ops)


def cards_grid(report: PlanReport, cards: Iterable[Card], tf32: bool = False) -> Grid:
    """The least time on each card, and whether weights and scratch fit in its memory."""
    rows = []
    unrated = False
    for card in cards:
        bound = roofline(report, card, tf32)
        needs = report.resident_bytes
        fits = UNKNOWN if needs is None else "yes" if needs <= card.memory_bytes else "no"
        if bound is None:
            rows.append((card.name, card.target, fits, UNKNOWN, ""))
            continue
        mark = "*" if bound.unrated else ""
        limited = f"{bound.bound_by_arithmetic} of {report.kernel_count}"
        time = f"{mark}{format_seconds(bound.seconds)}"
        unrated = unrated or bool(bound.unrated)
        rows.append((card.name, card.target, fits, time, limited))
    note = "no run is faster; a real one is slower"
    if unrated:
        note += ". * the vendor gives no rate for a type in use: memory alone"
    columns = ("card", "target", "fits", "at least>", "bound by arithmetic>")
    return Grid("Roofline", columns, tuple(rows), note)


def tensors_grid(report: PlanReport) -> Grid:
    """Inputs and outputs."""
    rows = [
        ("input" if tensor.is_input else "output", tensor.name, tensor.dtype, _shape_text(tensor))
        for tensor in report.network_tensors
    ]
    return Grid("Inputs and outputs", ("", "name", "type", "shape"), tuple(rows))


def _shape_text(tensor: NetworkTensor) -> str:
    if -1 not in tensor.shape:
        return _extents(tensor.shape)
    ranges = [
        " to ".join(_extents(shape) for shape in (low, high)) for low, _, high in tensor.ranges
    ]
    return "; ".join(ranges) or _extents(tensor.shape)


def _extents(shape: Iterable[int]) -> str:
    return "[" + ", ".join("?" if extent == -1 else str(extent) for extent in shape) + "]"


def fallback_grid(fallback: Iterable[FallbackRow]) -> Grid:
    """What stays in PyTorch, and why."""
    rows = [(op, str(times), reason, line) for op, reason, times, line in fallback]
    return Grid("Left to PyTorch", ("op", "times>", "reason", "your line"), tuple(rows))
