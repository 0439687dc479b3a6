"""Constants that a compilation makes, such as weights in FP16, in memory that can be taken back.

A network's constants are needed until its engine is built, each of them once or twice. Pages of a
file can be written out and dropped meanwhile where memory is short; other memory, without swap,
cannot. The files have no names, and end with the last tensor in them, or with the process.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from singlecard.host_memory import in_storage, is_plain
from singlecard.observe.topics import topic

log = topic("capture")

#: What is made of constants first, which stays in memory: most models never make a file.
IN_MEMORY_BYTES = 256 << 20

#: Tensors smaller than this stay in memory: each file is a mapping of its own, and their number in
#: a process is limited (65,530 in Linux).
_LEAST_BYTES = 1 << 20


class Spill:
    """Holds the constants that one compilation makes; beyond some bytes, in files of a folder."""

    def __init__(self, folder: Path, in_memory: int = IN_MEMORY_BYTES) -> None:
        """Name the folder; nothing is made in it before it is needed.

        Args:
            folder: where a disk is. In one that is memory itself, nothing is gained.
            in_memory: bytes that stay in memory.
        """
        self._folder, self._in_memory = folder, in_memory
        self._room = in_memory
        self._written = 0
        self._failed = False

    def fresh(self) -> Spill:
        """Return one like this that has held nothing yet, for constants that are soon gone."""
        return Spill(self._folder, self._in_memory)

    def hold(self, value: torch.Tensor) -> torch.Tensor:
        """Return a tensor whose memory nobody else uses, or the same in pages of a file.

        Where no file can be made, as on a full disk, the value stays in memory.
        """
        storage = self._storage(value.untyped_storage().nbytes()) if _can_move(value) else None
        if storage is None:
            return value
        storage.copy_(value.untyped_storage())
        return in_storage(storage, value)

    def convert(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a copy of a tensor in another type, with nothing in between.

        Copies that are made and dropped one by one leave memory behind that nobody uses: glibc
        2.36 did not give room for aligned memory out again (0.6 GB after weights of 0.9 GB).
        """
        form = torch.empty_like(value, dtype=dtype, device="meta")
        storage = self._storage(form.untyped_storage().nbytes()) if _can_move(value) else None
        if storage is None:
            return value.to(dtype, copy=True)
        held = torch.empty(0, dtype=dtype).set_(storage, 0, form.shape, form.stride())
        return held.copy_(value)

    def _storage(self, size: int) -> torch.UntypedStorage | None:
        """Return pages of a file, or None for what is to be in memory."""
        if size < _LEAST_BYTES or self._failed:
            return None
        if size <= self._room:
            self._room -= size
            return None
        try:
            return self._file(size)
        except (OSError, RuntimeError) as error:
            self._failed = True
            log.info("converted weights stay in memory: no file in %s (%s)", self._folder, error)
            return None

    def _file(self, size: int) -> torch.UntypedStorage:
        """Return the pages of a new file; all of it is on the disk before a page is written to.

        Raises:
            OSError: the disk is full, or will be with a plan of such weights on it.
            RuntimeError: PyTorch cannot map the file.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            # A page without a place on the disk would end the process (SIGBUS) when written to.
            os.posix_fallocate(file.fileno(), 0, size)
            disk = os.fstatvfs(file.fileno())
            if disk.f_bavail * disk.f_frsize < self._written + size:
                raise OSError("too little would be left on the disk for the plan")
            name = f"/proc/self/fd/{file.fileno()}"
            pages = torch.from_file(name, shared=True, size=size, dtype=torch.uint8)
        self._written += size
        return pages.untyped_storage()


def _can_move(value: torch.Tensor) -> bool:
    return type(value) is torch.Tensor and value.device.type == "cpu" and is_plain(value)
