"""Runs a segment on the card: loads its engine at the first call, one for each device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from singlecard.engine.build import Engine
from singlecard.lowering.lower import Lowered, input_name, output_name
from singlecard.network.executing import LoadedEngine
from singlecard.partition import Segment
from singlecard.runtime.runners import feeds_of, tensor_places


class EngineRunner:
    """Runs an engine.

    Raises:
        RuntimeFailure: from a call, with TensorRT's own words.
    """

    def __init__(
        self,
        engine: Engine,
        lowered: Lowered,
        segment: Segment,
    ) -> None:
        """Prepare to run; nothing is loaded yet.

        Args:
            engine: the engine on disk.
            lowered: the network it was built from.
            segment: the ops it stands for.
        """
        self.plan = engine.plan
        self.feed = feeds_of(lowered, segment)
        tensors = [input_name(index) for index in range(len(tensor_places(segment)))]
        self.inputs = [*tensors, *lowered.extents]
        self.outputs = [output_name(index) for index in range(len(lowered.outputs))]
        self.in_place = {
            self.outputs[output]: self.inputs[place] for output, place in lowered.in_place.items()
        }
        self.device: torch.device = segment.outputs[0].meta["val"].device
        self._loaded: dict[torch.device, LoadedEngine] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = list(self.feed(values).values())
        return self._engine(tensors[0].device if tensors else self.device)(tensors)

    def _engine(self, device: torch.device) -> LoadedEngine:
        if device not in self._loaded:
            with self._lock:
                if device not in self._loaded:
                    self._loaded[device] = LoadedEngine(
                        self.plan, device, self.inputs, self.outputs, self.in_place
                    )
        return self._loaded[device]
