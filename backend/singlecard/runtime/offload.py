"""Weights that are in engines need no memory of the card: they wait in host memory.

They stay tensors on the card, which every op and Dynamo's guards take as before. What reads them,
such as eager PyTorch for a call that no engine takes, reads over the bus.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from singlecard.errors import RuntimeFailure
from singlecard.free_memory import free_memory
from singlecard.host_memory import in_storage, is_plain
from singlecard.network.card import Card, card_of
from singlecard.observe.topics import topic
from singlecard.runtime.frozen import Frozen, following

log = topic("runtime")

#: Weights are moved without being asked where they take more than this part of the card.
BIG = 1 / 4

#: Host memory that is left alone, in bytes.
_SPARE = 1 << 30

#: Takes the bytes of a storage, returns a copy of them elsewhere.
_Copy = Callable[[torch.Tensor], torch.Tensor]


class Offload:
    """Makes room for a graph's engines, right before the first of them is loaded."""

    def __init__(self, frozen: Frozen, wanted: bool | None) -> None:
        """Prepare.

        Args:
            frozen: the weights that the engines hold.
            wanted: whether to move them; None: if they are big, see `BIG`.
        """
        self._frozen, self._wanted = frozen, wanted
        self._lock = threading.Lock()
        self._done = wanted is False

    def __call__(self, card: Card) -> None:
        with self._lock:
            if self._done:
                return
            self._done = True
            weights = [
                item
                for item in self._frozen.weights
                if item.device == card.device and is_plain(item) and not _is_hosted(item, card)
            ]
            size = sum(storage.nbytes() for storage in _storages(weights))
            if self._wanted is None and size <= BIG * card.memory:
                return
            if size + _SPARE > free_memory():
                log.warning(
                    "%d bytes of weights stay on %s beside their engine: host memory has no room "
                    "for them", size, card.device,
                )  # fmt: skip
                return
            try:
                moved = move_to_host(weights, card)
                if moved < size:  # what a compilation left behind holds weights: a network, say
                    gc.collect()
                    moved += move_to_host(weights, card)
            except torch.OutOfMemoryError as error:
                log.warning("weights stay on %s beside their engine: %s", card.device, error)
                return
            card.release_cached()
            log.info(
                "%d of %d bytes of weights were moved from %s to host memory: their engine has "
                "them. singlecard.restore_weights(model) puts them back", moved, size, card.device,
            )  # fmt: skip


def offload_weights(module: torch.nn.Module, device: torch.device | str | int = "cuda") -> int:
    """Put a model on a card without memory of the card: its weights stay in host memory.

    They become tensors on the card, in page-locked memory that the card reads over the bus. So a
    model can be compiled that is larger than the card: its engines have weights of their own, in
    another precision or streamed within ``memory_budget``.

    Args:
        module: the model, on the CPU or on the card. Parameters and buffers keep their identity.
        device: the card. ``"cuda"`` is the current one.

    Returns:
        Bytes that were moved.

    Raises:
        torch.OutOfMemoryError: host memory has no room; what was moved so far stays moved.
        RuntimeFailure: there is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeFailure(
            "weights cannot be offloaded: PyTorch finds no CUDA GPU on this machine that would "
            "read them. Leave the model on the CPU; engines for other cards are built from there"
        )
    card = card_of(torch.device(device))
    moved = move_to_host(_tensors(module), card, parts=True)
    module.to(card.device)  # what keeps its data elsewhere, such as a quantized weight
    return moved


def restore_weights(module: torch.nn.Module) -> int:
    """Put a model's weights back on the card: those that lie in host memory for its engines.

    Compiled calls go on with their engines as before; what runs in PyTorch is fast again.

    Args:
        module: the model, or what `torch.compile` made of it.

    Returns:
        Bytes that were moved: 0 where nothing was in host memory.

    Raises:
        torch.OutOfMemoryError: the card has no room; what was moved so far stays moved.
    """
    tensors = [item for item in plain_tensors(module) if item.device.type == "cuda"]
    return sum(
        move_to_card([item for item in tensors if item.device == device], card_of(device))
        for device in {item.device for item in tensors}
    )


def move_to_host(tensors: Iterable[torch.Tensor], card: Card, parts: bool = False) -> int:
    """Move the memory of tensors to host memory that a card reads; see `_move`."""

    def copied(data: torch.Tensor) -> torch.Tensor:
        memory = card.host_bytes(data.numel())
        view = card.host_view(memory)
        assert view is not None
        view.copy_(data)
        return memory

    there = [item for item in tensors if not _is_hosted(item, card)]
    return _move(there, copied, parts)


def move_to_card(tensors: Iterable[torch.Tensor], card: Card) -> int:
    """Move the memory of tensors from host memory to the card that they are on."""

    def copied(data: torch.Tensor) -> torch.Tensor:
        view = card.host_view(data)
        return card.bytes(data.numel()).copy_(data if view is None else view)

    return _move([item for item in tensors if _is_hosted(item, card)], copied, parts=True)


def _move(tensors: Iterable[torch.Tensor], copied: _Copy, parts: bool = False) -> int:
    """Give tensors other memory; what shares memory goes together. Return the bytes moved.

    Memory that somebody else holds as well, such as a view of a weight that no module has, stays
    where it is: it would not be freed, and a write to it would not reach the weight. With ``parts``
    it is left to whoever holds it, as `torch.nn.Module.to` does.
    """
    groups: dict[int, dict[int, torch.Tensor]] = {}
    for item in tensors:
        if is_plain(item) and item.data_ptr():
            groups.setdefault(item.untyped_storage().data_ptr(), {})[id(item)] = item
    moved = 0
    for group in groups.values():
        members = list(group.values())
        storage = members[0].untyped_storage()
        users = torch._C._storage_Use_Count(storage._cdata) - 1  # less ``storage``
        if users > len(members) and not parts:
            continue
        size = storage.nbytes()
        memory = copied(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
        del storage
        moves = [(item, _placed(item, memory)) for item in members]
        with following(moves):
            for item, there in moves:
                item.data = there
        moved += size
    return moved


def _placed(item: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies in a copy of a tensor's storage as that tensor does in its own."""
    with torch.inference_mode(item.is_inference()):  # which the tensor would take over
        return in_storage(memory.untyped_storage(), item)


def _is_hosted(tensor: torch.Tensor, card: Card) -> bool:
    return is_plain(tensor) and card.host_view(tensor) is not None


def _storages(tensors: Iterable[torch.Tensor]) -> list[torch.UntypedStorage]:
    found = (item.untyped_storage() for item in tensors)
    return list({storage.data_ptr(): storage for storage in found}.values())


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def plain_tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return the tensors of a module, and those that quantized ones, say, are made of."""
    found: list[torch.Tensor] = []
    left = _tensors(module)
    while left:
        tensor = left.pop(0)
        found.append(tensor)
        if is_traceable_wrapper_subclass(tensor):
            left.extend(getattr(tensor, name) for name in tensor.__tensor_flatten__()[0])
    return found
