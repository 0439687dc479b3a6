"""Runs a segment on the card: loads its engine at the first call, one for each device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from singlecard.network.executing import LoadedEngine
from singlecard.runtime.binding import Binding, feeds_of


class EngineRunner:
    """Runs an engine.

    Raises:
        RuntimeFailure: from a call, with TensorRT's own words.
    """

    def __init__(self, plan: Path, binding: Binding, held: object = None) -> None:
        """Prepare to run; nothing is loaded yet.

        Args:
            plan: the file.
            binding: how the engine is called.
            held: whatever keeps the file where it is, for as long as this runner lives.
        """
        self._held = held
        self.plan, self.device = plan, binding.device
        self.feed = feeds_of(binding)
        self.inputs, self.outputs = binding.input_names, binding.output_names
        self.in_place = binding.shared_names
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
