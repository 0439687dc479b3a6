"""Everything that calibration keeps of a model's run, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from singlecard.errors import CalibrationError
from singlecard.precision.points import Point
from singlecard_calib.observe import Observer
from singlecard_calib.ranges import Ranges

#: Elements of a tensor of which samples are kept, for choices that try several scales.
SAMPLED = 1 << 19


@dataclass
class Seen:
    """What was seen of one tensor that quantization may round.

    Attributes:
        observer: magnitudes over all calls.
        channels: FP32 [channels], largest magnitude of each channel of the last axis; None for
            tensors that no linear layer reads.
        sums: FP64 [channels], for means; of the last axis, or the second of a convolution's input.
        elements: how many elements each sum has.
        samples: rows of a linear layer's input, FP32 [rows, channels].
        sampled: elements of all samples.
    """

    observer: Observer = field(default_factory=Observer)
    channels: torch.Tensor | None = None
    sums: torch.Tensor | None = None
    elements: int = 0
    samples: list[torch.Tensor] = field(default_factory=list)
    sampled: int = 0

    def add(self, name: str, values: torch.Tensor, op: str, share: int) -> None:
        """See one call's tensor; keep up to a ``share`` of its elements as samples.

        Args:
            name: of the tensor.
            values: of any shape; [..., channels] for a linear layer, [batch, channels, ...] for a
                convolution.
            op: kind of the point that reads it, or "" where several read it under one name, and
                channels of one are not those of the other.
            share: elements.

        Raises:
            CalibrationError: an element is NaN or infinite.
        """
        # What is kept is computed with later, also where the model ran in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            self._add(name, values, op, share)

    def _add(self, name: str, values: torch.Tensor, op: str, share: int) -> None:
        try:
            self.observer.add(values)
        except ValueError as error:
            raise CalibrationError(
                f"{name} cannot be calibrated: {error}. Look for the input that makes it so, or "
                "leave the op out with the option exclude_modules"
            ) from None
        if not values.numel():
            return
        if op == "linear":
            flat = values.detach().float().reshape(-1, values.shape[-1])
            largest = flat.abs().amax(0).cpu()
            known = self.channels
            self.channels = largest if known is None else torch.maximum(known, largest)
            self._sum(flat)
            self._sample(flat, share)
        elif op == "convolution":
            self._sum(values.detach().transpose(1, -1).reshape(-1, values.shape[1]))

    def _sum(self, rows: torch.Tensor) -> None:
        total = rows.double().sum(0).cpu()
        self.sums = total if self.sums is None else self.sums + total
        self.elements += len(rows)

    @property
    def means(self) -> torch.Tensor | None:
        return None if self.sums is None or not self.elements else self.sums / self.elements

    def _sample(self, rows: torch.Tensor, share: int) -> None:
        width = rows[0].numel()
        room = min(SAMPLED - self.sampled, share)
        count = min(len(rows), max(room // width, 0 if self.samples else 1))
        if count <= 0:
            return
        places = torch.linspace(0, len(rows) - 1, count).round().long()
        self.samples.append(rows[places.to(rows.device)].cpu())
        self.sampled += count * width

    @property
    def sample(self) -> torch.Tensor | None:
        """All samples, [rows, channels]."""
        return torch.cat(self.samples) if self.samples else None

    def forget_channels(self) -> None:
        """Keep what holds of the tensor as a whole only."""
        self.channels = self.sums = None
        self.samples, self.sampled, self.elements = [], 0, 0


@dataclass
class Observations:
    """What was seen of a model.

    Attributes:
        calls: how often the model was called.
        tensors: by tensor name.
        points: what could be quantized, by name.
        graphs: fingerprints of the graphs that ran.
        shared: tensors that are not the same in all graphs that have their name. Their range is
            known, their channels are not.
        ranges: of all FP32 values.
    """

    calls: int = 0
    tensors: dict[str, Seen] = field(default_factory=dict)
    points: dict[str, Point] = field(default_factory=dict)
    graphs: list[dict[str, dict[str, object]]] = field(default_factory=list)
    shared: set[str] = field(default_factory=set)
    ranges: Ranges = field(default_factory=Ranges)

    def of(self, name: str) -> Seen:
        """Return what is kept of a tensor."""
        return self.tensors.setdefault(name, Seen())

    def add_graph(self, points: Sequence[Point]) -> None:
        """Take note of the points of a graph that will run."""
        fingerprint = {point.name: point.signature() for point in points}
        if not fingerprint or fingerprint in self.graphs:
            return
        for other in self.graphs:
            for name in other.keys() & fingerprint.keys():
                if other[name] != fingerprint[name]:
                    self._share(name, other[name], fingerprint[name])
        self.graphs.append(fingerprint)
        self.points.update({point.name: point for point in points})

    def _share(self, name: str, *signatures: dict[str, object]) -> None:
        """Two modules, or two parts of one, have an op of this name, each in another graph."""
        for signature in signatures:
            tensors = signature["tensors"]
            assert isinstance(tensors, list)
            self.shared.update(tensors)
        for tensor in self.shared & self.tensors.keys():
            self.tensors[tensor].forget_channels()
