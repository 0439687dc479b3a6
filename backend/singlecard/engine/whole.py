"""Whether the plan that TensorRT wrote is all there.

TensorRT hands a plan over in pieces. Where there is no memory for a piece, its Python bindings say
so on stderr, and the builder goes on and ends well: the file then lacks that piece, of up to
128 MiB (tensorrt_rtx 1.7.1.116, measured with RLIMIT_DATA). The cache would keep it for ever.
"""

from __future__ import annotations

from pathlib import Path

from singlecard.engine.signing import HEAD, stated_length


def missing_bytes(plan: Path, weights: int) -> int:
    """Return how many bytes a plan lacks at least, or 0.

    Args:
        plan: its file.
        weights: bytes of the weights in it, by the builder's log. That is what a plan of unknown
            layout, or one whose beginning is lost, is held against.
    """
    size = plan.stat().st_size
    with plan.open("rb") as file:
        length = stated_length(file.read(HEAD))
    if length is not None:
        return abs(length - size)
    return max(weights - size, int(size == 0))
