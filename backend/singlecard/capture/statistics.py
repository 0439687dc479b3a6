"""Batch norm's statistics: the one kind of weight that PyTorch changes without saying so."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

_COUNT = "num_batches_tracked"


def has_batch_norm(graph: fx.Graph) -> bool:
    """Tell whether a graph of Dynamo's normalizes by statistics."""
    return any("batch_norm" in getattr(node.target, "__name__", "") for node in graph.nodes)


class Statistics:
    """Tells whether the modules that hold some statistics have been trained since.

    Batch norm in training mode writes its running mean and variance in a kernel that leaves their
    version counters alone (measured with PyTorch 2.13). The count of batches beside them does
    move. A graph has no way from a statistic to its module, but the garbage collector has.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        held = [item for item in tensors if not isinstance(item, torch.nn.Parameter)]
        referrers: list[Any] = gc.get_referrers(*held) if held else []
        buffers = [item for item in referrers if isinstance(item, dict) and _COUNT in item]
        counts = {id(count): count for item in buffers if (count := item[_COUNT]) is not None}
        # A module that is gone, or counts in another tensor, is no longer the one that was seen.
        self._counts = [
            (weakref.ref(count), -1 if count.is_inference() else count._version)
            for count in counts.values()
        ]

    def are_current(self) -> bool:
        for reference, version in self._counts:
            count = reference()
            if count is None or (version >= 0 and count._version != version):
                return False
        return True
