"""How a segment's values meet the inputs and outputs of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from singlecard.lowering.lower import Extent, Lowered, Profile, input_name, output_name
from singlecard.partition import Segment
from singlecard.runtime.frozen import getter

#: Tensors by the names of a network's inputs.
Feeds = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Binding:
    """How to call a network. It holds no graph, so that it outlives the capture.

    Attributes:
        tensors: for each tensor input of the network, its place among the segment's inputs.
        extents: for each input that stands for a number by its length alone, see `Extent`.
        outputs: number of outputs.
        in_place: for each output that lies in an input's memory, its place and the input's.
        profiles: the range of each dynamic input, by input name.
        device: of the outputs, where no input tells it.
        operands: for each input that holds a number, the number's place, and the input's type.
        on_host: places among the tensors of single numbers that the engine's device lacks.
    """

    tensors: tuple[int, ...]
    extents: dict[str, Extent]
    outputs: int
    in_place: dict[int, int]
    profiles: dict[str, Profile]
    device: torch.device
    operands: dict[str, tuple[int, torch.dtype]] = field(default_factory=dict)
    on_host: tuple[int, ...] = ()

    @property
    def input_names(self) -> tuple[str, ...]:
        tensors = (input_name(at) for at in range(len(self.tensors)))
        return *tensors, *self.extents, *self.operands

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(output_name(at) for at in range(self.outputs))

    @property
    def shared_names(self) -> dict[str, str]:
        """For each output that lies in an input's memory, its name and the input's."""
        inputs, outputs = self.input_names, self.output_names
        return {outputs[at]: inputs[place] for at, place in self.in_place.items()}


def binding_of(lowered: Lowered, segment: Segment) -> Binding:
    places, device = tensor_places(segment), segment.outputs[0].meta["val"].device
    values = [segment.inputs[place].meta["val"] for place in places]
    return Binding(
        places,
        dict(lowered.extents),
        len(lowered.outputs),
        dict(lowered.in_place),
        dict(lowered.profiles),
        device,
        dict(lowered.operands),
        tuple(
            at
            for at, value in enumerate(values)
            if not value.ndim and value.device.type == "cpu" != device.type
        ),
    )


def tensor_places(segment: Segment) -> tuple[int, ...]:
    """Return the places of a segment's tensors among its inputs; the others are sizes."""
    return tuple(
        index
        for index, node in enumerate(segment.inputs)
        if isinstance(node.meta["val"], torch.Tensor)
    )


#: Tensors that stand for numbers, kept; more begin anew.
_KEPT_NUMBERS = 256


def tensors_of(binding: Binding) -> Callable[[Sequence[Any]], Sequence[torch.Tensor]]:
    """Return what gives a network's inputs, in the order of their names, for a segment's values.

    A number that is a size becomes a tensor of that length whose content means nothing, for engines
    take sizes from shapes alone; one that is an operand becomes a tensor that holds it. Each is
    made once for each number.
    """
    places, extents = binding.tensors, tuple(binding.extents.values())
    operands = tuple(binding.operands.values())
    on_host = binding.on_host
    if not extents and not operands and not on_host:
        return getter(places)
    kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def number(value: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        key = value, dtype, device
        tensor = kept.get(key)
        if tensor is None:
            if len(kept) >= _KEPT_NUMBERS:
                kept.clear()
            if dtype is torch.bool:
                tensor = torch.empty(value, dtype=dtype, device=device)
            else:
                tensor = torch.tensor([value], dtype=dtype, device=device)
            kept[key] = tensor
        return tensor

    def tensors(values: Sequence[Any]) -> list[torch.Tensor]:
        given = [values[place] for place in places]
        device = given[0].device if given and not on_host else binding.device
        for at in on_host:
            given[at] = number(given[at].item(), given[at].dtype, device).reshape(())
        for item in extents:
            given.append(number(int(values[item.place]) - item.less, torch.bool, device))
        for place, dtype in operands:
            given.append(number(values[place], dtype, device))
        return given

    return tensors


def feeds_of(binding: Binding) -> Callable[[Sequence[Any]], Feeds]:
    """Return what puts the values of a segment's inputs under the names of a network's inputs."""
    tensors, names = tensors_of(binding), binding.input_names
    return lambda values: dict(zip(names, tensors(values), strict=True))
