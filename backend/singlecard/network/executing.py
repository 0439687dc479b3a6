"""The runtime's side of the facade: a plan file becomes an engine on the current stream."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.flavour import tensorrt
from singlecard.network.logger import Messages, new_logger
from singlecard.network.types import torch_from_trt


class LoadedEngine:
    """One plan on one device, with one execution context for each stream it was called on."""

    def __init__(
        self,
        plan: Path,
        device: torch.device,
        inputs: Sequence[str],
        outputs: Sequence[str],
        in_place: Mapping[str, str],
    ) -> None:
        """Deserialize a plan.

        Args:
            plan: the file.
            device: the CUDA device to run on.
            inputs, outputs: names of the network's inputs and outputs, in the order of calls.
            in_place: for each output that lies in an input's memory, that input.

        Raises:
            RuntimeFailure: TensorRT refused the plan; the message has its own words.
        """
        self.messages = Messages()
        self.logger = new_logger(self.messages)
        self.device, self.inputs, self.outputs = device, tuple(inputs), tuple(outputs)
        self.in_place = dict(in_place)
        self._contexts: dict[int, Any] = {}
        self._lock = threading.Lock()
        with torch.cuda.device(device), plan.open("rb") as file:
            self._runtime = tensorrt().Runtime(self.logger)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                view = memoryview(content)
                self._engine = self._runtime.deserialize_cuda_engine(view)
                view.release()
        if self._engine is None:
            raise RuntimeFailure(
                f"TensorRT could not load the engine {plan}: {self.messages.last_problem()}"
            )
        self._types = {
            name: torch_from_trt(self._engine.get_tensor_dtype(name))
            for name in (*self.inputs, *self.outputs)
        }

    def _context(self, stream: int) -> Any:
        if stream not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise RuntimeFailure(
                    "TensorRT could not create an execution context, mostly for want of GPU "
                    f"memory ({self._engine.device_memory_size_v2} bytes of scratch): "
                    f"{self.messages.last_problem()}"
                )
            self._contexts[stream] = context
        return self._contexts[stream]

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Run on the current stream; the results come from PyTorch's caching allocator.

        A result that lies in an input's memory is that input, or its copy where it was not
        contiguous.

        Raises:
            RuntimeFailure: an input does not fit, or the launch failed.
        """
        # A context keeps addresses and shapes between calls, so one thread at a time may use it.
        with self._lock, torch.cuda.device(self.device):
            stream = torch.cuda.current_stream(self.device).cuda_stream
            context = self._context(stream)
            given = [value.contiguous() for value in values]
            for name, value in zip(self.inputs, given, strict=True):
                self._bind_input(context, name, value)
            by_name = dict(zip(self.inputs, given, strict=True))
            results = [self._bind_output(context, name, by_name) for name in self.outputs]
            if not context.execute_async_v3(stream):
                raise RuntimeFailure(
                    f"TensorRT could not launch the engine: {self.messages.last_problem()}"
                )
        return results

    def _bind_input(self, context: Any, name: str, value: torch.Tensor) -> None:
        if value.device != self.device or value.dtype != self._types[name]:
            raise RuntimeFailure(
                f"the engine's {name} takes {self._types[name]} on {self.device}, got "
                f"{value.dtype} on {value.device}"
            )
        if not context.set_input_shape(name, tuple(value.shape)):
            raise RuntimeFailure(
                f"the engine's {name} does not take the shape {list(value.shape)}: "
                f"{self.messages.last_problem()}"
            )
        context.set_tensor_address(name, value.data_ptr())

    def _bind_output(
        self, context: Any, name: str, given: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        if name in self.in_place:
            written = given[self.in_place[name]]
            context.set_tensor_address(name, written.data_ptr())
            return written
        shape = tuple(context.get_tensor_shape(name))
        if -1 in shape:
            raise RuntimeFailure(f"the shape of the engine's {name} is only known after the run")
        result = torch.empty(shape, dtype=self._types[name], device=self.device)
        context.set_tensor_address(name, result.data_ptr())
        return result
