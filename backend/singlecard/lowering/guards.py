"""Where attention pays for rows that a mask may hide, and what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from singlecard.capture import ops
from singlecard.capture.program import module_path
from singlecard.capture.quantized import quantized_attention
from singlecard.lowering.ops.attention import LONGEST_WITH_ZEROS


@dataclass(frozen=True)
class Guard:
    """An attention whose mask may hide all keys of a query, which then gets zero.

    Attributes:
        place: path of the module that the attention is in.
        keys: how many there are; None where their number varies.
        kernels: how many the guard adds to the engine: none where it is part of attention's own.
    """

    place: str
    keys: int | None
    kernels: int


def guards_of(nodes: Iterable[fx.Node]) -> list[Guard]:
    """Return the guards that stand in an engine of these ops."""
    found = []
    for node in nodes:
        if node.target not in (ops.attention, quantized_attention):
            continue
        mask, causal, sees = node.args[3], node.args[4], node.args[7:8] == (True,)
        if mask is None or causal or sees:
            continue
        keys = node.args[1].meta["val"].shape[-2]  # type: ignore[union-attr]
        known = keys if isinstance(keys, int) else None
        within = known is not None and known <= LONGEST_WITH_ZEROS
        found.append(Guard(module_path(node) or "model", known, 0 if within else 1))
    return found
