"""Which function computes which kind of layer."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.network.inspect import LayerView, TensorView
from singlecard.reference.types import tensor_from_weights, widen


@dataclass(frozen=True, slots=True)
class Call:
    """One layer with the values of its inputs: what a layer's function is given.

    Attributes:
        layer: the layer.
        inputs: the values of its inputs, None for an optional one that is not given.
        device: where constants go.
    """

    layer: LayerView
    inputs: tuple[Tensor | None, ...]
    device: torch.device

    def __getitem__(self, index: int) -> Tensor:
        """The value of a required input."""
        value = self.optional(index)
        if value is None:
            raise EvaluationError(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Tensor | None:
        """The value of an optional input, None if it is not given."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def output(self) -> TensorView:
        """The layer's first output."""
        return self.layer.outputs[0]

    def text(self, name: str) -> str:
        """A string, or the name of an enumeration's value."""
        return cast(str, self.layer.attributes[name])

    def integer(self, name: str) -> int:
        """An integer or a flag."""
        return cast(int, self.layer.attributes[name])

    def number(self, name: str) -> float:
        """A float."""
        return cast(float, self.layer.attributes[name])

    def dims(self, name: str) -> tuple[int, ...] | None:
        """Dimensions, None if they are not set or given by an input."""
        return cast("tuple[int, ...] | None", self.layer.attributes[name])

    def required_dims(self, name: str) -> tuple[int, ...]:
        """Dimensions that are always set."""
        return cast("tuple[int, ...]", self.layer.attributes[name])

    def axes(self, name: str = "axes") -> tuple[int, ...]:
        """The dimensions whose bit is set."""
        mask = self.integer(name)
        return tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)

    def integers(self, index: int) -> tuple[int, ...] | None:
        """The elements of an optional integer input."""
        value = self.optional(index)
        return None if value is None else tuple(value.flatten().tolist())

    def weights(self, role: str) -> Tensor | None:
        """The elements of the weights in a row, widened; None if there are none."""
        view = self.layer.weights[role]
        return widen(tensor_from_weights(view, self.device)) if view.count else None


#: Returns the layer's outputs; None for a layer that has none.
Evaluator = Callable[[Call], Tensor | tuple[Tensor, ...] | None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a kind of layer is computed.

    Attributes:
        kind: the kind of layer.
        function: computes the outputs.
        widens: whether narrow floats among the inputs are given to the function in FP32.
    """

    kind: str
    function: Evaluator
    widens: bool


_MARK = "__singlecard_evaluates__"

#: The modules of this package that hold evaluators, one for each family of layers.
FAMILIES = (
    "activation",
    "attention",
    "constants",
    "control_flow",
    "convolution",
    "detection",
    "elementwise",
    "indexing",
    "matmul",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "sampling",
    "shapes",
    "slicing",
)


def evaluates(kind: str, *, widens: bool = True) -> Callable[[Evaluator], Evaluator]:
    """Declare that the decorated function computes layers of ``kind``.

    Args:
        kind: the name of the ``LayerType``.
        widens: give FP16, BF16 and FP8 inputs in FP32, as for everything that does arithmetic.
            What only moves elements sets it to False.
    """

    def mark(function: Evaluator) -> Evaluator:
        marks = getattr(function, _MARK, ())
        setattr(function, _MARK, (*marks, Evaluation(kind, function, widens)))
        return function

    return mark


@functools.cache
def evaluations() -> Mapping[str, Evaluation]:
    """Return all evaluators by kind of layer."""
    found: dict[str, Evaluation] = {}
    for family in FAMILIES:
        module = importlib.import_module(f"singlecard.reference.{family}")
        for member in vars(module).values():
            for evaluation in getattr(member, _MARK, ()):
                found[evaluation.kind] = evaluation
    return MappingProxyType(found)
