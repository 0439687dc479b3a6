"""Reads what the builder says of a finished plan: log text in, its entries and tensors out.

The text is the VERBOSE message that starts with ``Layers:``, which TensorRT writes when a network
is built with ``ProfilingVerbosity.DETAILED``, and two totals at INFO. Every format here was read
from tensorrt_rtx 1.7.1.116; a line that does not fit is an error, so that a new version is noticed
and never counted as nothing.

Full TensorRT has other words for its kernels, and kernels of other kinds. Of its log only the two
totals are read, each where it is there: `read_totals`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from singlecard.errors import BuildError

#: Bits of one element, by the builder's name of the type.
BITS = {
    "Float": 32,
    "Half": 16,
    "BFloat16": 16,
    "FP8": 8,
    "FP8UE8M0": 8,
    "FP4E2M1": 4,
    "Int64": 64,
    "Int32": 32,
    "Int8": 8,
    "UInt8": 8,
    "Int4": 4,
    "Bool": 8,
}

_LIST = r"\[(?: \{ .*? \})?\]"
_ENTRY = re.compile(
    rf"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]+), Inputs: (?P<inputs>{_LIST})"
    rf"(?:, Constants: (?P<constants>{_LIST}))?, Outputs: (?P<outputs>{_LIST})"
    r", (?P<rest>.*?Metadata: ?(?P<metadata>.*))"
)
# Layers that TensorRT runs itself, outside its compiler, have a location and no strides.
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?),(?: Location: \w+,)? Dimensions: \[(?P<shape>[-\d,]*)\],"
    r"(?: Strides: \[(?P<strides>[-\d,]*)\], StrideOrder: \[[-\d,]*\],)?"
    r" Datatype: (?P<dtype>\w+), Format: .*? \}(?=, \{ Name: |\])"
)
_NETWORK_TENSOR = re.compile(
    r" Name: (?P<name>.*), IOMode: (?P<mode>Input|Output), DataType: (?P<dtype>\w+), "
    r"Dimensions: \[(?P<shape>[-\d,]*)\], .*?ProfileInfo: (?P<profiles>.*)"
)
_RANGE = re.compile(r"MinShape: \[([-\d,]*)\], OptShape: \[([-\d,]*)\], MaxShape: \[([-\d,]*)\]")
_PROFILE = re.compile(r" \[profile (\d+)\]$")
_SUBGRAPH = re.compile(r"_myl(\d+)_\d+$")


@dataclass(frozen=True)
class KernelTensor:
    """A tensor as one kernel sees it: often a view of a larger buffer of the same name.

    Attributes:
        name: of the buffer.
        shape: extents; -1 where the extent depends on the call.
        strides: in elements, 0 where one element is read again and again.
        dtype: as the builder writes it: Half, Float, Int8, ...
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int | None:
        """Number of different elements that the view reaches; None if an extent is dynamic."""
        if -1 in self.shape:
            return None
        count = math.prod(self.shape)
        return count if self.span is None else min(count, self.span)

    @property
    def span(self) -> int | None:
        """Elements from the first to the last that the view reaches, gaps included."""
        if -1 in self.shape or -1 in self.strides:
            return None
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((extent - 1) * stride for extent, stride in steps)

    def bytes_of(self, elements: int) -> int:
        """Return the bytes of so many elements; two 4-bit ones share a byte."""
        return (elements * BITS[self.dtype] + 7) // 8


@dataclass(frozen=True)
class NetworkTensor:
    """An input or output of the engine.

    Attributes:
        name, shape, dtype: as in the network; -1 marks a dynamic extent.
        is_input: False for an output.
        ranges: for each profile the smallest, usual and largest shape; empty for outputs.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_input: bool
    ranges: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True)
class LogEntry:
    """One entry of the plan, as logged. ``profile`` is None where the entry does not say."""

    name: str
    kind: str
    inputs: tuple[KernelTensor, ...]
    constants: tuple[KernelTensor, ...]
    outputs: tuple[KernelTensor, ...]
    metadata: str
    profile: int | None

    @property
    def tensors(self) -> tuple[KernelTensor, ...]:
        return self.inputs + self.constants + self.outputs

    @property
    def steps(self) -> tuple[str, ...]:
        """What a generated kernel does, from its name: ``__myl_FcAddRelu_myl0_3`` has 3 steps."""
        found = re.fullmatch(r"__myl_((?:[A-Z][a-z0-9]*)+)_myl\d+_\d+", self.name)
        return tuple(re.findall("[A-Z][a-z0-9]*", found[1])) if found else ()


@dataclass(frozen=True)
class PlanLog:
    """All that the builder said of one plan."""

    entries: tuple[LogEntry, ...]
    network_tensors: tuple[NetworkTensor, ...]
    scratch_bytes: int
    weights_bytes: int


def parse_plan_log(messages: Iterable[tuple[object, str]]) -> PlanLog:
    """Read the messages of one build, pairs of severity and text.

    Raises:
        BuildError: the plan is not described in them, or in a way that is not known.
    """
    texts = [text for _, text in messages]
    layers = next((text for text in reversed(texts) if text.startswith("Layers:")), None)
    if layers is None:
        raise BuildError(
            "the builder did not list the kernels of its plan (no message starts with 'Layers:'): "
            "build with ProfilingVerbosity.DETAILED and a logger that keeps VERBOSE messages"
        )
    kernels, mark, rest = layers.removeprefix("Layers:").partition("\nI/O Tensors:\n")
    if not mark:
        raise _unknown_format("'Layers:' message without the part 'I/O Tensors:'", layers[-200:])
    entries = tuple(_entry(line) for line in kernels.splitlines() if line.strip())
    tensors = rest.partition("\n\n")[0].splitlines()
    return PlanLog(
        _with_profiles(entries),
        tuple(_network_tensor(line) for line in tensors if line.strip()),
        _total(texts, "Activation"),
        _total(texts, "Weights"),
    )


def read_totals(messages: Iterable[tuple[object, str]]) -> tuple[int | None, int | None]:
    """Return scratch and weights in bytes, as far as full TensorRT told them.

    Public logs of 10.x write ``Total Weights Memory: 103529216 bytes``, older ones the number
    alone. Anything else stands for a total that is not known.
    """
    texts = [text for _, text in messages]
    return _found_total(texts, "Activation"), _found_total(texts, "Weights")


def _found_total(texts: list[str], what: str) -> int | None:
    """Return the last total of a kind; None where its message is missing, or worded otherwise."""
    head = f"Total {what} Memory:"
    text = next((text for text in reversed(texts) if text.startswith(head)), "")
    found = re.fullmatch(rf"{head} (\d+)(?: bytes)?\s*", text)
    return int(found[1]) if found else None


def _unknown_format(what: str, text: str) -> BuildError:
    return BuildError(
        f"the builder describes its plan in a form that singlecard does not know: {what}: "
        f"{text[:300]!r}. singlecard reads the log of tensorrt-rtx 1.7: install that version, "
        "or report this line"
    )


def _total(texts: list[str], what: str) -> int:
    pattern = re.compile(rf"Total {what} Memory: (\d+) bytes")
    found = next((match for text in reversed(texts) if (match := pattern.match(text))), None)
    if found is None:
        raise _unknown_format(f"no message 'Total {what} Memory: N bytes'", "")
    return int(found[1])


def _entry(line: str) -> LogEntry:
    found = _ENTRY.fullmatch(line)
    if found is None:
        raise _unknown_format("a line in the list of kernels", line)
    inputs, constants, outputs = (
        _tensors(found[part] or "[]", line) for part in ("inputs", "constants", "outputs")
    )
    name, kind, metadata = found["name"], found["kind"], found["metadata"]
    return LogEntry(name, kind, inputs, constants, outputs, metadata, None)


def _tensors(text: str, line: str) -> tuple[KernelTensor, ...]:
    found = list(_TENSOR.finditer(text))
    if len(found) != text.count("{ Name: "):
        raise _unknown_format("a tensor of a kernel", line)
    return tuple(_tensor(match, line) for match in found)


def _tensor(found: re.Match[str], line: str) -> KernelTensor:
    if found["dtype"] not in BITS:
        raise _unknown_format(f"the type {found['dtype']}", line)
    shape = _numbers(found["shape"])
    strides = _contiguous(shape) if found["strides"] is None else _numbers(found["strides"])
    return KernelTensor(found["name"], shape, strides, found["dtype"])


def _network_tensor(line: str) -> NetworkTensor:
    found = _NETWORK_TENSOR.fullmatch(line)
    if found is None:
        raise _unknown_format("a line in the list of inputs and outputs", line)
    ranges = tuple(
        (_numbers(low), _numbers(usual), _numbers(high))
        for low, usual, high in _RANGE.findall(found["profiles"])
    )
    shape, is_input = _numbers(found["shape"]), found["mode"] == "Input"
    return NetworkTensor(found["name"], shape, found["dtype"], is_input, ranges)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    tails = [shape[axis + 1 :] for axis in range(len(shape))]
    return tuple(-1 if -1 in tail else math.prod(tail) for tail in tails)


def _with_profiles(entries: tuple[LogEntry, ...]) -> tuple[LogEntry, ...]:
    """Give each entry its optimization profile, and take the mark off the tensors' names.

    With several profiles the plan holds every kernel once for each. Only tensors of the network
    carry the mark `` [profile 1]``; the kernels between share the number after ``_myl``.
    """
    profile_of = {
        _subgraph(entry): int(found[1])
        for entry in entries
        for tensor in entry.tensors
        if (found := _PROFILE.search(tensor.name))
    }
    if not profile_of:
        return entries
    return tuple(
        replace(
            entry,
            inputs=_without_marks(entry.inputs),
            outputs=_without_marks(entry.outputs),
            profile=profile_of.get(_subgraph(entry), 0),
        )
        for entry in entries
    )


def _subgraph(entry: LogEntry) -> str:
    found = _SUBGRAPH.search(entry.name)
    return found[1] if found else ""


def _without_marks(tensors: tuple[KernelTensor, ...]) -> tuple[KernelTensor, ...]:
    return tuple(replace(tensor, name=_PROFILE.sub("", tensor.name)) for tensor in tensors)
