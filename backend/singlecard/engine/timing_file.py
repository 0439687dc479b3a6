"""What full TensorRT measured of kernels while it built, kept for the next build.

One file in the folder of engines for each model of card, driver and TensorRT: timings of one card
say nothing of another. TensorRT for RTX measures nothing while it builds, and has no such file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from singlecard.engine.merged_file import MergedFile, name_for_card
from singlecard.network.card import card_of
from singlecard.network.flavour import flavour_version
from singlecard.network.versions import device_at_hand, measures_kernels

log = logging.getLogger("singlecard.build")

_MAGIC = b"singlecard.timings.1\n"


class TimingFile:
    """One such file."""

    def __init__(self, path: Path) -> None:
        """Name a file, which need not be there."""
        self._file = MergedFile(path, _MAGIC, "timings of kernels", log)

    def load(self) -> bytes:
        """Return a serialized ``ITimingCache``; nothing where the file is missing or damaged."""
        return self._file.read()

    def save(self, own: bytes, merge: Callable[[bytes, bytes], bytes]) -> None:
        """Add timings to the file; nothing happens where it cannot be written.

        Args:
            own: a serialized ``ITimingCache``.
            merge: makes one of two, given what is in the file and ``own``.
        """
        self._file.merge(lambda present: merge(present, own) if present else own)


def timing_file(folder: Path) -> TimingFile | None:
    """Return the file for the card at hand; None where nothing is measured, or on no card."""
    device = device_at_hand() if measures_kernels() else None
    if device is None:
        return None
    card = card_of(device)
    return TimingFile(folder / name_for_card("timings", card.name, card.driver, flavour_version()))
