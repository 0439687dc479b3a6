"""Where in this process's memory something lies, and how much is in no file."""

from __future__ import annotations

from pathlib import Path


def file_at(address: int) -> str:
    """Return the file whose pages lie at an address; "" for memory of no file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            name = rest.split(maxsplit=4)[4:]
            return name[0] if name and name[0].startswith("/") else ""
    return ""


def anonymous_memory() -> int:
    """Return the bytes that this process holds in memory of no file."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024
