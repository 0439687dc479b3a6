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
from singlecard.runtime.runners import Runner, tensor_places


def engine_runner(engine: Engine, lowered: Lowered, segment: Segment) -> Runner:
    """Return what runs an engine on the device of its first input."""
    places = tensor_places(segment)
    inputs = [input_name(index) for index in range(len(places))]
    outputs = [output_name(index) for index in range(len(lowered.outputs))]
    device = segment.outputs[0].meta["val"].device
    loaded: dict[torch.device, LoadedEngine] = {}
    lock = threading.Lock()

    def run(values: Sequence[Any]) -> Sequence[Any]:
        where = values[places[0]].device if places else torch.device("cuda", device.index or 0)
        if where not in loaded:
            with lock:
                if where not in loaded:
                    loaded[where] = LoadedEngine(engine.plan, where, inputs, outputs)
        return loaded[where]([values[place] for place in places])

    return run
