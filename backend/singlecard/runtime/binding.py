"""How a segment's values meet the inputs and outputs of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from singlecard.lowering.lower import Lowered, Profile, input_name, output_name
from singlecard.partition import Segment

#: Tensors by the names of a network's inputs.
Feeds = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Binding:
    """How to call a network. It holds no graph, so that it outlives the capture.

    Attributes:
        tensors: for each tensor input of the network, its place among the segment's inputs.
        extents: for each input that stands for a number, by its length alone, the number's place.
        outputs: number of outputs.
        in_place: for each output that lies in an input's memory, its place and the input's.
        profiles: the range of each dynamic input, by input name.
        device: of the outputs, where no input tells it.
    """

    tensors: tuple[int, ...]
    extents: dict[str, int]
    outputs: int
    in_place: dict[int, int]
    profiles: dict[str, Profile]
    device: torch.device

    @property
    def input_names(self) -> tuple[str, ...]:
        return *(input_name(at) for at in range(len(self.tensors))), *self.extents

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output_name(at) for at in range(self.outputs))

    @property
    def shared_names(self) -> dict[str, str]:
        """For each output that lies in an input's memory, its name and the input's."""
        inputs, outputs = self.input_names, self.output_names
        return {outputs[at]: inputs[place] for at, place in self.in_place.items()}


def binding_of(lowered: Lowered, segment: Segment) -> Binding:
    return Binding(
        tensor_places(segment),
        dict(lowered.extents),
        len(lowered.outputs),
        dict(lowered.in_place),
        dict(lowered.profiles),
        segment.outputs[0].meta["val"].device,
    )


def tensor_places(segment: Segment) -> tuple[int, ...]:
    """Return the places of a segment's tensors among its inputs; the others are sizes."""
    return tuple(
        index
        for index, node in enumerate(segment.inputs)
        if isinstance(node.meta["val"], torch.Tensor)
    )


def feeds_of(binding: Binding) -> Callable[[Sequence[Any]], Feeds]:
    """Return what puts the values of a segment's inputs under the names of a network's inputs.

    A number becomes an empty-handed tensor of that length: engines take numbers by shapes alone.
    """
    places = dict(zip(binding.input_names, binding.tensors, strict=False))

    def feed(values: Sequence[Any]) -> Feeds:
        where = values[binding.tensors[0]].device if binding.tensors else binding.device
        feeds = {name: values[place] for name, place in places.items()}
        for name, place in binding.extents.items():
            feeds[name] = torch.empty(int(values[place]), dtype=torch.bool, device=where)
        return feeds

    return feed
