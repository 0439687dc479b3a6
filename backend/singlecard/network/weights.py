"""The weights of an engine that was loaded without them: they come to the card and go again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from singlecard.errors import RuntimeFailure
from singlecard.free_memory import free_memory
from singlecard.network.card import Card
from singlecard.network.flavour import trt
from singlecard.network.logger import Messages
from singlecard.network.versions import weights_manager

#: Weights are kept in page-locked memory if they take no more than this part of what is free there.
_PART = 1 / 4


class MovingWeights:
    """Loads weights from the plan at first, and then from page-locked memory.

    Page-locked memory is copied to the card several times faster than the plan's pages, and takes
    as much host memory as the weights. Where it has no room, or TensorRT does not hand the weights
    out (``IWeightsManager``), they come from the plan each time.
    """

    def __init__(
        self,
        engine: trt.ICudaEngine,
        card: Card,
        messages: Messages,
        mapped: Callable[[], AbstractContextManager[memoryview]],
        name: str,
    ) -> None:
        """Prepare.

        Args:
            engine: loaded with ``Runtime.defer_weights_loading``.
            card: where it is.
            messages: TensorRT's.
            mapped: maps the plan.
            name: of the plan, for messages.
        """
        self._engine: Any = engine
        self._card, self._messages, self._mapped, self._name = card, messages, mapped, name
        self._manager: Any = weights_manager(engine)
        #: What TensorRT handed out, in host memory.
        self._saved: torch.Tensor | None = None

    def put_on_card(self) -> None:
        """Put the weights on the card; they are there when this returns.

        Raises:
            RuntimeFailure: TensorRT could not.
        """
        if self._saved is not None and self._restore(self._saved):
            return
        self._saved = None
        with self._mapped() as view:
            loaded = self._engine.load_weights(view) or (
                self._card.release_cached() and self._engine.load_weights(view)
            )
        if not loaded:
            raise RuntimeFailure(
                f"TensorRT could not load the weights of {self._name}: "
                f"{self._messages.last_problem()}"
            )

    def take_off_card(self) -> None:
        """Take the weights off the card; no call may be under way."""
        if self._saved is None and self._manager is not None:
            self._saved = self._save()
        if self._saved is None or not self._manager.unload(self._card.stream()):
            self._saved = None
            self._engine.unload_weights()

    def _save(self) -> torch.Tensor | None:
        """Return a copy of the weights in host memory, or None where there is to be none."""
        size = int(self._manager.get_size())
        try:
            memory = self._card.host_bytes(size) if size <= _PART * free_memory() else None
        except torch.OutOfMemoryError:
            memory = None
        if memory is not None and self._moved(self._manager.save_to_buffer, memory):
            return memory
        self._manager = None
        return None

    def _restore(self, saved: torch.Tensor) -> bool:
        if self._moved(self._manager.restore_from_buffer, saved) and self._engine.weights_loaded:
            return True
        self._manager = None
        return False

    def _moved(self, move: Callable[[int, int, Any, int], bool], memory: torch.Tensor) -> bool:
        """Copy between the engine and host memory; return whether it is done."""
        place: Any = trt.TensorLocation.HOST
        done = move(memory.data_ptr(), memory.numel(), place, self._card.stream())
        self._card.mark().synchronize()  # the copy is in the stream's order, and others may run
        return done
