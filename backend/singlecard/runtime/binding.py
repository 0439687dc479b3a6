"""How a segment's values meet the inputs and outputs of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from singlecard.lowering.lower import Lowered, Profile, input_name, output_name
from singlecard.partition import Segment
from singlecard.runtime.frozen import getter

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


#: Tensors that stand for numbers by their lengths alone, kept; more begin anew.
_KEPT_LENGTHS = 256


def tensors_of(binding: Binding) -> Callable[[Sequence[Any]], Sequence[torch.Tensor]]:
    """Return what gives a network's inputs, in the order of their names, for a segment's values.

    A number becomes a tensor of that length whose content means nothing: engines take numbers by
    shapes alone. So it is made once for each number.
    """
    places, extents = binding.tensors, tuple(binding.extents.values())
    if not extents:
        return getter(places)
    kept: dict[tuple[int, torch.device], torch.Tensor] = {}

    def length(size: int, device: torch.device) -> torch.Tensor:
        tensor = kept.get((size, device))
        if tensor is None:
            if len(kept) >= _KEPT_LENGTHS:
                kept.clear()
            tensor = kept[size, device] = torch.empty(size, dtype=torch.bool, device=device)
        return tensor

    def tensors(values: Sequence[Any]) -> list[torch.Tensor]:
        given = [values[place] for place in places]
        device = given[0].device if given else binding.device
        given.extend([length(int(values[place]), device) for place in extents])
        return given

    return tensors


def feeds_of(binding: Binding) -> Callable[[Sequence[Any]], Feeds]:
    """Return what puts the values of a segment's inputs under the names of a network's inputs."""
    tensors, names = tensors_of(binding), binding.input_names
    return lambda values: dict(zip(names, tensors(values), strict=True))
