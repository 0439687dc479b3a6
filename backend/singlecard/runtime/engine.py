"""Runs a segment on the card: loads its engine at the first call, one for each device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.card import Card, card_of
from singlecard.network.executing import LoadedEngine, Plan, plan_size
from singlecard.network.flavour import flavour_version
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.observe.counters import count_one
from singlecard.options import Options
from singlecard.runtime.arena import arena_of
from singlecard.runtime.binding import Binding, tensors_of
from singlecard.runtime.runtime_cache import KernelFile, kernels_name
from singlecard.runtime.seat import Seat
from singlecard.runtime.weight_turns import turns_of, weight_share

#: Runs an engine that is on the card, or may have to come there.
_Runs = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def settings_of(options: Options, size: int, graph: int) -> RuntimeSettings:
    """Return how an engine is run under a caller's options.

    Args:
        options: the caller's.
        size: bytes of its plan, which are its weights and little else.
        graph: of all plans of its graph.
    """
    return RuntimeSettings(
        cuda_graphs=options.cuda_graphs,
        specialization=options.specialization,
        weight_budget=weight_share(size, graph, options.memory_budget),
        memory_budget=options.memory_budget,
    )


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
        before_load: Callable[[Card], None] | None = None,
        kernels: Callable[[], tuple[Path, str] | None] | None = None,
    ) -> None:
        """Prepare to run; nothing is loaded yet.

        Args:
            plan: the file, or where else it lies.
            binding: how the engine is called.
            held: whatever keeps the file where it is, for as long as this runner lives. Kernels
                that are compiled on the card are kept beside a file that is held.
            settings: how the engine is run.
            before_load: called when the engine is found to be right for the card, before it takes
                memory there.
            kernels: for a plan that is not held: gives a folder for kernels and the engine's
                digest, when it is loaded, or None where kernels cannot be kept.
        """
        self._held = held
        self.plan, self.device = plan, binding.device
        self.settings, self._before_load = settings or RuntimeSettings(), before_load
        self._kernels = kernels
        self.inputs, self.outputs = binding.input_names, binding.output_names
        self.in_place = binding.shared_names
        self._tensors = tensors_of(binding)
        self._loaded: dict[torch.device, _Runs] = {}
        self._refusals: dict[torch.device, str] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = self._tensors(values)
        device = tensors[0].device if tensors else self.device
        engine = self._loaded.get(device)
        if engine is None:
            engine = self._load(device)
        results = engine(tensors)
        count_one("engine_calls")
        return results

    def _load(self, device: torch.device) -> _Runs:
        with self._lock:
            if device in self._refusals:  # it takes seconds to find out
                raise RuntimeFailure(self._refusals[device])
            if device not in self._loaded:
                self._loaded[device] = self._new_runs(device)
            return self._loaded[device]

    def _new_runs(self, device: torch.device) -> _Runs:
        budget = self.settings.memory_budget
        if budget is None:
            return self._new_engine(device, False)
        size = plan_size(self.plan)
        if self.settings.weight_budget is not None:
            size = min(size, self.settings.weight_budget)
        return Seat(
            lambda: self._new_engine(device, True),
            size,
            budget,
            card_of(device),
            turns_of(device),
        )

    def _new_engine(self, device: torch.device, moves: bool) -> LoadedEngine:
        if device in self._refusals:
            raise RuntimeFailure(self._refusals[device])
        try:
            return LoadedEngine(
                self.plan,
                device,
                self.inputs,
                self.outputs,
                self.in_place,
                settings=self.settings,
                scratch=arena_of if self.settings.shared_scratch else None,
                store=self._store(device),
                moves=moves,
                checked=self._before_load,
            )
        except RuntimeFailure as error:
            self._refusals[device] = str(error)
            self._loaded.pop(device, None)  # a seat: calls would take turns for nothing
            raise

    def _store(self, device: torch.device) -> KernelFile | None:
        if not self.settings.keep_kernels:
            return None
        if self._held is not None and isinstance(self.plan, Path):
            folder, digest = self.plan.parent, ""
        else:
            place = None if self._kernels is None else self._kernels()
            if place is None:
                return None
            folder, digest = place
        card = card_of(device)
        name = kernels_name(card.name, card.driver, flavour_version(), digest)
        return KernelFile(folder / name, self._held)
