"""How much host memory is free."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Return the bytes that are free, for the machine or for the container, whichever is less."""
    return max(0, min([_machine_memory(), *_container_memory(Path("/sys/fs/cgroup"))]))


def _machine_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_memory(root: Path) -> list[int]:
    """Return what a container's limit leaves, if there is one; of either version of cgroups."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            text = (root / limit).read_text().strip()
            if text == "max":
                return []
            statistics = (root / limit).with_name("memory.stat").read_text().splitlines()
            pages = [int(line.split()[1]) for line in statistics if line.split()[0] == cached]
            return [int(text) - int((root / used).read_text()) + sum(pages)]
        except (OSError, ValueError, IndexError):
            continue
    return []
