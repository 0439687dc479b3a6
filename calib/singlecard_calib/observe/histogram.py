"""Counts of magnitudes in bins whose range grows with what is seen, in bounded memory."""

from __future__ import annotations

import math
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
        """Return plain values, with no bins behind the last that is not empty."""
        last = int(np.flatnonzero(self.counts)[-1]) + 1 if self.counts.any() else 0
        return {"limit": self.limit, "zeros": self.zeros, "counts": self.counts[:last].tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Histogram:
        """Return what `to_dict` described.

        Raises:
            ValueError: a value is missing, or no count.
        """
        try:
            given = np.asarray(values["counts"], np.int64)
            limit, zeros = float(values["limit"]), int(values["zeros"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a histogram: {error}") from error
        if given.ndim != 1 or len(given) > BINS or (given < 0).any() or zeros < 0:
            raise ValueError(f"not a histogram: {len(given)} counts, or one below zero")
        if limit < 0 or (limit and math.frexp(limit)[0] != 0.5) or (given.any() and not limit):
            raise ValueError(f"not a histogram: its limit, {limit}, is no power of two")
        counts = np.zeros(BINS, np.int64)
        counts[: len(given)] = given
        return cls(limit, counts, zeros)
