"""How many bytes each kernel of a plan moves between the card's memory and its cores.

The builder lists for each kernel the tensors it reads and writes, with extents and strides. What a
kernel moves is counted from that list by these rules, each measured on plans of tensorrt_rtx
1.7.1.116:

- Every different element that a tensor's strides reach counts once: a broadcast (stride 0) is not
  moved again for each copy.
- A tensor that is listed twice counts once if it is whole (softmax lists its input once a pass),
  and twice if each entry is a part of a larger buffer (``silu(gate) * up`` reads two halves of one
  buffer, listed with equal extents): the sum of the entries, never more than the buffer.
- A kernel that gathers reads of each tensor at most as many elements as its largest output has:
  an embedding touches the rows that it looks up, not the table. Where the kernel also reduces
  (a bag of embeddings), a row of the table for each index, if that is more.
- A kernel that scatters into a tensor in place (a KV-cache update) does not read that tensor, and
  writes at most as many elements as the largest of its other inputs has.
- A slice taken inside a kernel counts its whole source: the log does not tell which part is read.

Caches are not modelled: a tensor that two kernels read counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from singlecard.engine.plan_log import KernelTensor, LogEntry

_REDUCTIONS = frozenset({"Sum", "Mean", "Max", "Maxr", "Min", "Minr", "Prod"})
_INTEGERS = frozenset({"Int32", "Int64"})


@dataclass(frozen=True)
class Touched:
    """Bytes of one buffer that one kernel reads and writes; None where a size is dynamic."""

    read: int | None = 0
    written: int | None = 0


def buffer_spans(entries: Iterable[LogEntry]) -> dict[str, int]:
    """Return for each buffer the bytes that the widest view of it spans."""
    spans: dict[str, int] = {}
    for entry in entries:
        for tensor in entry.tensors:
            size = tensor.bytes_of(tensor.span or 0)
            spans[tensor.name] = max(spans.get(tensor.name, 0), size)
    return spans


def touched_by(entry: LogEntry, spans: Mapping[str, int]) -> dict[str, Touched]:
    """Return by buffer what a kernel moves."""
    read = _by_name(entry.inputs + entry.constants)
    written = _by_name(entry.outputs)
    limit = _gather_limit(entry) if "Gath" in entry.steps else None
    in_place = read.keys() & written.keys() if "Scat" in entry.steps else frozenset()
    touched: dict[str, Touched] = {}
    for name in read.keys() | written.keys():
        if name in in_place:
            others = [tensor for tensor in entry.inputs if tensor.name not in in_place]
            size = _size(written[name], spans[name], _most_elements(others))
            touched[name] = Touched(0, size)
        else:
            touched[name] = Touched(
                _size(read.get(name, []), spans[name], limit),
                _size(written.get(name, []), spans[name], None),
            )
    return touched


def total(sizes: Iterable[int | None]) -> int | None:
    """Add sizes; None if one of them is not known."""
    values = list(sizes)
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def largest(sizes: Iterable[int | None]) -> int | None:
    """Return the largest size, 0 of none; None if one of them is not known."""
    values = list(sizes)
    known = [value for value in values if value is not None]
    return max(known, default=0) if len(known) == len(values) else None


def _by_name(tensors: Iterable[KernelTensor]) -> dict[str, list[KernelTensor]]:
    result: dict[str, list[KernelTensor]] = {}
    for tensor in tensors:
        result.setdefault(tensor.name, []).append(tensor)
    return result


def _size(views: list[KernelTensor], span: int, limit: int | None) -> int | None:
    size = total(_view_size(view, limit) for view in views)
    return None if size is None else min(size, span)


def _view_size(view: KernelTensor, limit: int | None) -> int | None:
    if view.elements is None:
        return None
    return view.bytes_of(view.elements if limit is None else min(view.elements, limit))


def _most_elements(tensors: Iterable[KernelTensor]) -> int | None:
    """Return the elements of the largest tensor; None if one is dynamic or there is none."""
    counts = [tensor.elements for tensor in tensors]
    known = [count for count in counts if count is not None]
    return max(known) if known and len(known) == len(counts) else None


def _gather_limit(entry: LogEntry) -> int | None:
    limit = _most_elements(entry.outputs)
    if limit is None or not _REDUCTIONS.intersection(entry.steps):
        return limit
    # Indices computed before the engine runs are constants; those of the call come first.
    for group in (entry.inputs, entry.constants):
        indices = _most_elements(tensor for tensor in group if tensor.dtype in _INTEGERS)
        if indices is not None:
            tables = [tensor.shape for tensor in entry.constants if tensor.dtype not in _INTEGERS]
            rows = [shape[1] for shape in tables if len(shape) == 2]
            return max(limit, indices * max(rows, default=1))
    return limit
