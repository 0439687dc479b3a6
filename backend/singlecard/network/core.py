"""The ground of the network facade: layers with names, inputs, constants, outputs, casts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

from singlecard.errors import LoweringError
from singlecard.host_memory import on_cpu
from singlecard.network import versions
from singlecard.network.endings import end
from singlecard.network.flavour import trt
from singlecard.network.logger import Messages, new_logger
from singlecard.network.tensor import Tensor
from singlecard.network.types import INT4, torch_from_trt, trt_from_torch

Number = bool | int | float

Arguments = ParamSpec("Arguments")
Layer = TypeVar("Layer")

#: Characters that mean something in TensorRT's joined metadata.
_UNSAFE = {ord(character): None for character in "[]\x1f\n"}


class Core:
    """Owns one ``INetworkDefinition``, and every array behind its constants."""

    def __init__(self) -> None:
        self.messages = Messages()
        self.logger = new_logger(self.messages)
        self.builder: trt.Builder = versions.new_builder(self.logger, self.messages)
        self.definition: trt.INetworkDefinition = self.builder.create_network(
            versions.network_flags()
        )
        # TensorRT does not copy what stands behind a Weights object: it must outlive the build.
        self._arrays: list[torch.Tensor] = []
        self._constants: dict[tuple[Any, ...], Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._scope = ""
        self._names: dict[str, int] = {}

    def __del__(self, _ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if _ends():
            return  # modules are gone by then, and the process takes its memory with it
        held = dict(vars(self))
        vars(self).clear()
        end(held)

    @contextmanager
    def scope(self, path: str) -> Iterator[None]:
        """Name the layers made inside after ``path``: ``<module path>/<op>``."""
        outer, self._scope = self._scope, path.translate(_UNSAFE)
        try:
            yield
        finally:
            self._scope = outer

    def add(self, kind: str, *args: Any) -> Any:
        """Call ``add_<kind>`` and return the layer; for kinds that not every TensorRT has.

        Raises:
            LoweringError: as `layer` does.
        """
        return self.layer(getattr(self.definition, "add_" + kind), *args)

    def layer(
        self,
        make: Callable[Arguments, Layer],
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Layer:
        """Call a method of the definition and return its layer, named after the scope.

        Raises:
            LoweringError: TensorRT refused the layer; the message carries TensorRT's own words.
        """
        kind = make.__name__.removeprefix("add_")
        layer = make(*args, **kwargs)
        if layer is None:
            raise LoweringError(
                f"TensorRT refused a {kind} layer for {self._scope or 'the network'}: "
                f"{self.messages.last_problem()}"
            )
        self.name_layer(layer, kind)
        return layer

    def name_layer(self, layer: Any, kind: str) -> None:
        base = f"{self._scope}/{kind}" if self._scope else kind
        count = self._names.get(base, 0)
        self._names[base] = count + 1
        layer.name = f"{base}.{count}" if count else base
        # Metadata survives fusion, names do not; brackets keep apart what TensorRT joins. A
        # constant is shared, and would carry its first user's path into the others' kernels.
        layer.metadata = f"[{self._scope}]" if self._scope and kind != "constant" else ""

    def wrap(self, handle: trt.ITensor) -> Tensor:
        """Return the facade's value for a TensorRT tensor."""
        try:
            shape = tuple(handle.shape)
        except (RuntimeError, ValueError) as error:
            raise LoweringError(
                f"TensorRT finds no shape for {self._scope or 'a layer'}: "
                f"{self.messages.last_problem()}"
            ) from error
        return Tensor(handle, shape, torch_from_trt(handle.dtype))

    def output_of(self, layer: trt.ILayer, index: int = 0) -> Tensor:
        return self.wrap(layer.get_output(index))

    def input(self, name: str, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Declare a network input; -1 marks a dynamic extent."""
        return self.wrap(self.definition.add_input(name, trt_from_torch(dtype), tuple(shape)))

    def mark_output(self, tensor: Tensor, name: str) -> None:
        """Declare a network output. A tensor that is an input or an output already is passed on."""
        handle = tensor.handle
        if handle.is_network_input or handle.is_network_output:
            handle = self.layer(self.definition.add_identity, handle).get_output(0)
        handle.name = name
        self.definition.mark_output(handle)

    def constant(self, value: torch.Tensor) -> Tensor:
        """Return a constant. The same storage is stored once, and never copied if contiguous."""
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and key in self._constants:
            return self._constants[key]
        array = on_cpu(value).contiguous()
        weights = trt.Weights(
            trt_from_torch(array.dtype), array.data_ptr() if array.numel() else 0, array.numel()
        )
        tensor = self.output_of(
            self.layer(self.definition.add_constant, tuple(array.shape), weights)
        )
        self._arrays += [value, array]
        self._constants[key] = tensor
        self._values[id(tensor)] = array
        return tensor

    def constant_int4(self, codes: torch.Tensor) -> Tensor:
        """Return an INT4 constant of int8 values from -8 to 7: two to a byte, low bits first."""
        key = ("int4", codes.data_ptr(), tuple(codes.shape), codes.stride())
        if key in self._constants:
            return self._constants[key]
        pairs = on_cpu(codes).contiguous().flatten().view(-1, 2)
        array = (pairs[:, 0] & 15) | (pairs[:, 1] << 4)
        weights = trt.Weights(trt_from_torch(INT4), array.data_ptr(), 2 * array.numel())
        tensor = self.output_of(
            self.layer(self.definition.add_constant, tuple(codes.shape), weights)
        )
        self._arrays += [codes, array]
        self._constants[key] = tensor
        return tensor

    def value_of(self, tensor: Tensor) -> torch.Tensor | None:
        """Return the elements of a constant, or None for what is computed at run time."""
        return self._values.get(id(tensor))

    def scalar(self, value: Number, dtype: torch.dtype, ndim: int = 0) -> Tensor:
        """Return a constant of ``ndim`` dimensions of extent 1 that holds ``value``."""
        # repr keeps -0.0, 0 and False, or nan, apart.
        key = ("scalar", repr(value), dtype, ndim)
        if key not in self._constants:
            array = torch.full((1,) * ndim, value, dtype=dtype)
            self._constants[key] = self.constant(array)
        return self._constants[key]

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``x`` in another type, with PyTorch's conversion rules."""
        if x.dtype == dtype:
            return x
        return self.output_of(self.layer(self.definition.add_cast, x.handle, trt_from_torch(dtype)))
