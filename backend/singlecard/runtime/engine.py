"""Runs a segment on the card: loads its engine at the first call, one for each device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import card_of
from singlecard.network.executing import LoadedEngine, Plan, Turns
from singlecard.network.flavour import flavour_version
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime.arena import arena_of
from singlecard.runtime.binding import Binding, tensors_of
from singlecard.runtime.runtime_cache import KernelFile, kernels_name


class EngineRunner:
    """Runs an engine.

    Raises:
        RuntimeFailure: from a call, with TensorRT's own words.
    """

    def __init__(
        self,
        plan: Path | Plan,
        binding: Binding,
        held: object = None,
        *,
        settings: RuntimeSettings | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Prepare to run; nothing is loaded yet.

        Args:
            plan: the file, or where else it lies.
            binding: how the engine is called.
            held: whatever keeps the file where it is, for as long as this runner lives. Kernels
                that are compiled on the card are kept beside a file that is held, and nowhere else.
            settings: how the engine is run.
            turns: who may have weights on the card; None: everybody, all the time.
        """
        self._held = held
        self.plan, self.device = plan, binding.device
        self.settings, self._turns = settings or RuntimeSettings(), turns
        self.inputs, self.outputs = binding.input_names, binding.output_names
        self.in_place = binding.shared_names
        self._tensors = tensors_of(binding)
        self._loaded: dict[torch.device, LoadedEngine] = {}
        self._refusals: dict[torch.device, str] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = self._tensors(values)
        device = tensors[0].device if tensors else self.device
        engine = self._loaded.get(device)
        if engine is None:
            engine = self._load(device)
        return engine(tensors)

    def _load(self, device: torch.device) -> LoadedEngine:
        with self._lock:
            if device in self._refusals:  # it takes seconds to find out
                raise RuntimeFailure(self._refusals[device])
            if device not in self._loaded:
                try:
                    self._loaded[device] = self._new_engine(device)
                except RuntimeFailure as error:
                    self._refusals[device] = str(error)
                    raise
            return self._loaded[device]

    def _new_engine(self, device: torch.device) -> LoadedEngine:
        return LoadedEngine(
            self.plan,
            device,
            self.inputs,
            self.outputs,
            self.in_place,
            settings=self.settings,
            scratch=arena_of if self.settings.shared_scratch else None,
            store=self._store(device),
            turns=self._turns,
        )

    def _store(self, device: torch.device) -> KernelFile | None:
        if not self.settings.keep_kernels or self._held is None or not isinstance(self.plan, Path):
            return None
        card = card_of(device)
        name = kernels_name(card.name, card.driver, flavour_version())
        return KernelFile(self.plan.with_name(name), self._held)
