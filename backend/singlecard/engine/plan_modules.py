"""Leads the kernels of a plan back to the modules of the user's model.

The network facade writes into every layer's ``metadata`` the text ``[path/op]``: the path of the
module that made the op, a slash, and the op's name, in brackets. TensorRT joins the metadata of
all layers that it fuses into a kernel with the character 0x1F, each text once, and lists them with
the kernel (tensorrt_rtx 1.7.1.116). The brackets are needed because TensorRT itself appends to a
text now and then ("__gemm_from_conv1x1"). Metadata changes neither kernels nor fusion.

Some kernels carry none: changes of memory layout that the builder adds between two layers. They
are led back by the tensors they move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from singlecard.engine.plan_log import LogEntry

_SOURCE = re.compile(r"\[([^\[\]\x1f]*)\]")


@dataclass(frozen=True)
class Origin:
    """Where a kernel comes from.

    Attributes:
        modules: paths of modules, such as ``encoder.layer.0.attention``; the model itself is "".
        ops: names of the ops it holds.
        inferred: True where the kernel itself does not say, and its neighbours do.
    """

    modules: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    inferred: bool = False


def origin_of(metadata: str) -> Origin:
    """Read the metadata of one kernel.

    >>> origin_of("[encoder.0.fc/aten.linear]\\x1f[encoder.0/aten.gelu]__gemm_from_conv1x1")
    Origin(modules=('encoder.0.fc', 'encoder.0'), ops=('aten.linear', 'aten.gelu'), inferred=False)
    """
    sources = [source.partition("/") for source in _SOURCE.findall(metadata)]
    modules = dict.fromkeys(path for path, _, _ in sources)
    return Origin(tuple(modules), tuple(dict.fromkeys(op for _, _, op in sources if op)))


def origins_of(entries: Sequence[LogEntry]) -> list[Origin]:
    """Return the origin of each entry.

    A kernel that carries no metadata belongs to the modules whose results it moves; where those
    are inputs of the network, or unknown as well, to the modules that read what it writes.
    """
    origins = [origin_of(entry.metadata) for entry in entries]
    writers, readers = _neighbours(entries)
    changed = True
    while changed:
        changed = False
        for index, entry in enumerate(entries):
            if origins[index].modules:
                continue
            sources = [w for t in entry.inputs for w in writers.get(t.name, ()) if w != index]
            users = [r for t in entry.outputs for r in readers.get(t.name, ()) if r != index]
            modules = _modules(origins, sources) or _modules(origins, users)
            if modules:
                origins[index] = Origin(modules, (), True)
                changed = True
    return origins


def _neighbours(
    entries: Sequence[LogEntry],
) -> tuple[Mapping[str, list[int]], Mapping[str, list[int]]]:
    writers: dict[str, list[int]] = {}
    readers: dict[str, list[int]] = {}
    for index, entry in enumerate(entries):
        for tensor in entry.outputs:
            writers.setdefault(tensor.name, []).append(index)
        for tensor in entry.inputs:
            readers.setdefault(tensor.name, []).append(index)
    return writers, readers


def _modules(origins: Sequence[Origin], indices: Sequence[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for index in indices for path in origins[index].modules))
