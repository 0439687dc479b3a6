"""Runs a segment on the card: loads its engine at the first call, one for each device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from singlecard.engine.build import Engine
from singlecard.errors import RuntimeFailure
from singlecard.lowering.lower import Lowered, Profile, input_name, output_name
from singlecard.network.executing import LoadedEngine
from singlecard.partition import Segment
from singlecard.runtime.runners import Runner, tensor_places

log = logging.getLogger("singlecard")


def range_refusal(shapes: Mapping[str, Sequence[int]], profiles: Mapping[str, Profile]) -> str:
    """Return why shapes are outside of an engine's range, or '' where they are inside."""
    for name, span in profiles.items():
        for axis, size in enumerate(shapes[name]):
            low, high = span.smallest[axis], span.largest[axis]
            if not low <= size <= high:
                return f"axis {axis} of {name} has {size}, the engine was built for {low} to {high}"
    return ""


class EngineRunner:
    """Runs an engine; what it cannot run goes to PyTorch, with the reason logged once."""

    def __init__(
        self,
        engine: Engine,
        lowered: Lowered,
        segment: Segment,
        instead: Runner | None,
    ) -> None:
        """Prepare to run; nothing is loaded yet.

        Args:
            engine: the engine on disk.
            lowered: the network it was built from.
            segment: the ops it stands for.
            instead: what runs where the engine cannot; None raises instead.
        """
        self.plan = engine.plan
        self.profiles = lowered.profiles
        self.places = tensor_places(segment)
        self.inputs = [input_name(index) for index in range(len(self.places))]
        self.outputs = [output_name(index) for index in range(len(lowered.outputs))]
        self.in_place = {
            self.outputs[output]: self.inputs[place] for output, place in lowered.in_place.items()
        }
        self.device: torch.device = segment.outputs[0].meta["val"].device
        self.instead = instead
        self._loaded: dict[torch.device, LoadedEngine] = {}
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = [values[place] for place in self.places]
        try:
            refusal = self.profiles and range_refusal(
                {name: value.shape for name, value in zip(self.inputs, tensors, strict=True)},
                self.profiles,
            )
            if refusal:
                raise RuntimeFailure(refusal)
            return self._engine(tensors[0].device if tensors else self.device)(tensors)
        except RuntimeFailure as error:
            if self.instead is None:
                raise
            if str(error) not in self._told:
                self._told.add(str(error))
                log.warning("%s: this part runs in PyTorch", error)
            return self.instead(values)

    def _engine(self, device: torch.device) -> LoadedEngine:
        if device not in self._loaded:
            with self._lock:
                if device not in self._loaded:
                    self._loaded[device] = LoadedEngine(
                        self.plan, device, self.inputs, self.outputs, self.in_place
                    )
        return self._loaded[device]
