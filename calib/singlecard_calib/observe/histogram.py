"""Counts of magnitudes in bins whose range grows with what is seen, in bounded memory."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

#: Four times as many bins as the methods lay over what was seen: of a range that has just doubled
#: half the bins are in use.
BINS = 8192


@dataclass
class Histogram:
    """How often magnitudes fall into `BINS` equal bins from 0 to ``limit``.

    ``limit`` is a power of two. It doubles when a larger magnitude comes, and pairs of bins become
    one: nothing is lost but fineness. So histograms of parts of the data, made anywhere and in any
    order, merge into that of the whole, to the count.

    Attributes:
        limit: upper end of the last bin; 0 before anything but zeros was seen.
        counts: int64 [BINS].
        zeros: how many elements were exactly zero; they are in no bin.
    """

    limit: float = 0.0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    zeros: int = 0

    @property
    def total(self) -> int:
        """Number of elements seen."""
        return int(self.counts.sum()) + self.zeros

    @property
    def width(self) -> float:
        return self.limit / BINS

    def add(self, values: torch.Tensor) -> None:
        """Count the magnitudes of a floating-point tensor of any shape, on any device.

        Raises:
            ValueError: an element is NaN or infinite; nothing is counted then.
        """
        magnitudes = values.detach().abs().flatten().to(torch.float32)
        if not magnitudes.numel():
            return
        largest = float(magnitudes.max())
        if not math.isfinite(largest):
            kind = "NaN" if math.isnan(largest) else "infinite"
            raise ValueError(f"a calibrated value is {kind}")
        zeros = int((magnitudes == 0).sum())
        self.zeros += zeros
        if zeros == magnitudes.numel():
            return
        self.widen(largest)
        # The lower end of a bin belongs to it. Division by a power of two is exact.
        places = (magnitudes.double() * (BINS / self.limit)).long().clamp_(max=BINS - 1)
        found = torch.bincount(places[magnitudes != 0], minlength=BINS)
        self.counts += found.cpu().numpy()

    def widen(self, largest: float) -> None:
        """Double the range until it holds a magnitude."""
        if largest <= self.limit:
            return
        exponent = math.frexp(largest)[1]
        if largest == math.ldexp(0.5, exponent):
            exponent -= 1  # a power of two is held by the range that ends with it
        if self.limit:
            for _ in range(exponent - math.frexp(self.limit)[1] + 1):
                pairs = self.counts.reshape(-1, 2).sum(1)
                self.counts = np.concatenate([pairs, np.zeros(BINS // 2, np.int64)])
        self.limit = math.ldexp(1.0, exponent)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram, which stays as it is."""
        theirs = Histogram(other.limit, other.counts.copy(), other.zeros)
        self.widen(theirs.limit)
        if theirs.limit:
            theirs.widen(self.limit)
            self.counts += theirs.counts
        self.zeros += theirs.zeros

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; the counts are packed into text."""
        return {"limit": self.limit, "zeros": self.zeros, "counts": _packed(self.counts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Histogram:
        """Return what `to_dict` described.

        Raises:
            ValueError: a value is missing, or no count.
        """
        try:
            counts = _unpacked(values["counts"])
            limit, zeros = float(values["limit"]), int(values["zeros"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a histogram: {error}") from error
        if (counts < 0).any() or zeros < 0:
            raise ValueError("not a histogram: a count is below zero")
        if limit < 0 or (limit and math.frexp(limit)[0] != 0.5) or (counts.any() and not limit):
            raise ValueError(f"not a histogram: its limit, {limit}, is no power of two")
        return cls(limit, counts, zeros)


def _packed(counts: np.ndarray) -> str:
    """Return counts as base64 of zlib: first the lowest bytes of all, then the next, and so on."""
    planes = counts.astype("<i8").view(np.uint8).reshape(-1, 8).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def _unpacked(text: Any) -> np.ndarray:
    """Return what `_packed` was given.

    Raises:
        ValueError: the text is damaged.
    """
    if not isinstance(text, str):
        raise ValueError(f"its counts are {type(text).__name__}, not text")
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(base64.b64decode(text, validate=True), BINS * 8)
    except zlib.error as error:
        raise ValueError(f"its counts are damaged ({error})") from error
    if len(content) != BINS * 8 or not _is_whole(unpacking):
        raise ValueError("its counts are cut off, or too many")
    planes = np.frombuffer(content, np.uint8).reshape(8, -1)
    return np.ascontiguousarray(planes.T).view("<i8").astype(np.int64).reshape(-1)


def _is_whole(unpacking: Any) -> bool:
    """Tell whether a stream ends here, with the right checksum."""
    try:
        return not unpacking.decompress(unpacking.unconsumed_tail, 1) and bool(unpacking.eof)
    except zlib.error:
        return False
