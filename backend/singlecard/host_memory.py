"""Host memory that a card reads and writes as its own.

CUDA gives page-locked memory one address for the host and all cards (unified virtual addressing).
So a tensor on the card may lie in host memory: every op of PyTorch takes it, as slow as the bus is,
and no memory of the card is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from typing import Any

import torch

#: Flags of ``cuMemHostAlloc`` (cuda.h): for all contexts, and in the card's address space.
_PORTABLE, _DEVICE_MAP = 0x01, 0x02


class _Block:
    """Page-locked memory, in the form in which PyTorch takes memory that others own."""

    def __init__(self, size: int, device: torch.device) -> None:
        address = ctypes.c_void_p()
        flags = _PORTABLE | _DEVICE_MAP
        status = _driver().cuMemHostAlloc(
            ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(flags)
        )
        if status or not address.value:
            raise torch.OutOfMemoryError(
                f"CUDA could not lock {size} bytes of host memory (error {status})"
            )
        self.address, self.size = address.value, size
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.address, False),
            "version": 3,
        }
        # A process that ends gives all back; and PyTorch may be gone before this.
        weakref.finalize(self, _free, self.address, device, os.getpid()).atexit = False


def _free(address: int, device: torch.device, process: int) -> None:
    if os.getpid() != process:  # a forked child has no CUDA
        return
    torch.cuda.synchronize(device)  # kernels may read it still
    _driver().cuMemFreeHost(ctypes.c_void_p(address))


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


#: What is alive, by address. PyTorch keeps a block for as long as a tensor lies in it.
_blocks: weakref.WeakValueDictionary[int, _Block] = weakref.WeakValueDictionary()


def host_bytes(size: int, device: torch.device) -> torch.Tensor:
    """Return bytes of host memory, as a tensor on a card.

    Raises:
        torch.OutOfMemoryError: there is not so much memory that could be locked.
    """
    if not size:
        return torch.empty(0, dtype=torch.uint8, device=device)
    with torch.cuda.device(device):
        torch.cuda.synchronize(device)  # makes the context, which the driver asks for
        block = _Block(size, device)
        _blocks[block.address] = block
        return torch.as_tensor(block, device=device)


#: Subclasses may keep their data elsewhere.
_PLAIN = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)


def is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is its storage, type, shape and strides, and no more."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
    )


def in_storage(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor that lies in a storage as another tensor does in its own."""
    empty = torch.empty(0, dtype=like.dtype, device=storage.device)
    return empty.set_(storage, like.storage_offset(), like.shape, like.stride())


def host_view(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor on the CPU in the memory of one on a card, if that is host memory."""
    if not _blocks or tensor.device.type != "cuda" or tensor.layout is not torch.strided:
        return None
    block = _blocks.get(tensor.untyped_storage().data_ptr())
    if block is None:
        return None
    memory = (ctypes.c_ubyte * block.size).from_address(block.address)
    memory.block = block  # type: ignore[attr-defined]  # it lives as long as the view
    storage = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return in_storage(storage, tensor)


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the CPU: the same memory where that can be, or else a copy."""
    plain = tensor.detach()
    view = host_view(plain)
    if view is None:
        return plain.to("cpu")
    torch.cuda.current_stream(tensor.device).synchronize()  # the card may write there still
    return view
