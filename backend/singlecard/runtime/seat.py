"""An engine that has weights on the card only while it is its turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from singlecard.network.card import Card
from singlecard.network.executing import LoadedEngine
from singlecard.runtime.weight_turns import WeightTurns


class Seat:
    """One engine among those that share a budget.

    TensorRT for RTX 1.7 takes weights away from an engine and keeps its contexts. Where that
    cannot be, with another TensorRT or an engine that streams, the engine goes as a whole.
    """

    def __init__(
        self,
        load: Callable[[], LoadedEngine],
        weight_bytes: int,
        budget: int,
        card: Card,
        turns: WeightTurns,
    ) -> None:
        """Take part; nothing is loaded yet.

        Args:
            load: loads the engine, without its weights where it can be.
            weight_bytes: memory that its weights take on the card.
            budget: bytes for all weights, as this engine's owner sees it.
            card: where it runs.
            turns: of all engines on that card.
        """
        self.weight_bytes, self._load, self._card, self._turns = weight_bytes, load, card, turns
        self._engine: LoadedEngine | None = None
        turns.add(self, budget)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run the engine; see `LoadedEngine.__call__`."""
        with self._turns.taken(self, self._card.is_capturing()):
            assert self._engine is not None
            return self._engine(values)

    def load_weights(self) -> None:
        if self._engine is None:
            self._engine = self._load()
        if self._engine.is_deferred:
            self._engine.load_weights()

    def unload_weights(self) -> None:
        engine = self._engine
        assert engine is not None
        engine.finish()
        if engine.is_deferred:
            engine.unload_weights()
        else:
            self._engine = None
