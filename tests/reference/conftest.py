"""A network drawn by hand, layer by layer, with the feeds of its inputs beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from singlecard.network.flavour import tensorrt
from singlecard.reference import evaluate

_NAMES = {
    torch.float32: "FLOAT",
    torch.float16: "HALF",
    torch.bfloat16: "BF16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.int8: "INT8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "FP8",
}


class Sketch:
    """A network definition and what keeps it alive; every added layer is checked to be one."""

    def __init__(self) -> None:
        trt = tensorrt()
        self.trt = trt
        self._logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
        self._builder = trt.Builder(self._logger)
        self.network = self._builder.create_network()
        self.feeds: dict[str, Tensor] = {}
        self._alive: list[Any] = []

    def input(self, value: Tensor, shape: tuple[int, ...] | None = None) -> Any:
        """An input that is fed ``value``; ``shape`` has -1 for open dimensions."""
        name = f"input{len(self.feeds)}"
        self.feeds[name] = value
        dtype = (
            getattr(self.trt, _NAMES[value.dtype], None)
            or self.trt.DataType.__members__[_NAMES[value.dtype]]
        )
        return self.network.add_input(name, dtype, shape or tuple(value.shape))

    def constant(self, value: Tensor) -> Any:
        """A constant of a type that NumPy knows."""
        return self.add("constant", tuple(value.shape), self.weights(value)).get_output(0)

    def packed(self, dtype: str, packed: bytes, shape: tuple[int, ...]) -> Any:
        """A constant of any type, from its bytes."""
        data = np.frombuffer(packed, np.uint8).copy()
        self._alive.append(data)
        member = self.trt.DataType.__members__[dtype]
        weights = self.trt.Weights(member, data.ctypes.data, int(np.prod(shape)))
        return self.add("constant", shape, weights).get_output(0)

    def weights(self, value: Tensor) -> Any:
        """Weights that stay alive with the sketch."""
        array = value.contiguous().numpy()
        self._alive.append(array)
        return self.trt.Weights(array)

    def add(self, kind: str, *args: Any) -> Any:
        """Call ``add_<kind>`` of the network."""
        layer = getattr(self.network, f"add_{kind}")(*args)
        assert layer is not None, f"TensorRT refuses add_{kind}"
        return layer

    def run(self, *outputs: Any) -> Any:
        """Evaluate the network for some of its tensors: a tensor for one, a list for several."""
        for number, output in enumerate(outputs):
            output.name = f"output{number}"
            self.network.mark_output(output)
        answers = evaluate(self.network, self.feeds)
        values = [answers[f"output{number}"] for number in range(len(outputs))]
        return values[0] if len(values) == 1 else values


@pytest.fixture
def sketch() -> Sketch:
    torch.manual_seed(0)
    return Sketch()
