"""Runs a segment through Torch-TensorRT's C++ runtime, whose modules ``torch.export`` can save."""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from singlecard.errors import OptionError, RuntimeFailure
from singlecard.network.executing import Plan
from singlecard.network.flavour import CHOICE, flavour_name, flavour_version
from singlecard.observe.counters import count_one
from singlecard.partition import Segment
from singlecard.runtime.binding import Binding, tensors_of

_ASKED = "option runtime='torch_tensorrt'"
_ELSE = "or leave the option out: singlecard runs its engines itself then"

#: What Torch-TensorRT must know of the inputs and outputs of an engine to trace it: for each its
#: type, and its extents as numbers or as symbols that inputs and outputs have in common.
Described = dict[str, list[dict[str, Any]]]


def load_torch_tensorrt() -> ModuleType:
    """Return Torch-TensorRT, if it can run the engines that are built here.

    Raises:
        OptionError: it is missing, does not load, has no C++ runtime, or has another TensorRT.
    """
    if importlib.util.find_spec("torch_tensorrt") is None:
        raise OptionError(
            f"{_ASKED} needs Torch-TensorRT, which is not installed: "
            f"pip install 'singlecard[torch-tensorrt]', {_ELSE}"
        )
    try:
        module = importlib.import_module("torch_tensorrt")
    except Exception as error:  # it raises plain exceptions, and others without a CUDA device
        raise OptionError(
            f"{_ASKED} needs Torch-TensorRT, which is installed and does not load "
            f"({type(error).__name__}: {error}): it needs a CUDA device, and the PyTorch and the "
            f"TensorRT it was made for; see to that, {_ELSE}"
        ) from error
    if not module.ENABLED_FEATURES.torch_tensorrt_runtime:
        raise OptionError(
            f"{_ASKED} needs the C++ runtime of Torch-TensorRT, and the installed "
            f"{module.__version__} was made without: install another, {_ELSE}"
        )
    # Torch-TensorRT puts what it uses in the place of the module tensorrt, be it for RTX or not.
    theirs = f"{module.tensorrt_package_name} {importlib.import_module('tensorrt').__version__}"
    ours = f"{flavour_name()} {flavour_version()}"
    if ours != theirs:
        way = f"install the same version of both, {_ELSE}"
        if module.tensorrt_package_name != flavour_name():
            way = f"set {CHOICE}={module.tensorrt_package_name} to build with its flavour, {_ELSE}"
        raise OptionError(
            f"{_ASKED} needs one TensorRT on both sides, for engines run with no other: singlecard "
            f"builds with {ours}, and Torch-TensorRT {module.__version__} runs {theirs}: {way}"
        )
    return module


def describe(segment: Segment, binding: Binding) -> Described:
    """Return what Torch-TensorRT must know to trace a segment's engine, as for export."""
    values = [node.meta["val"] for node in segment.inputs]
    tensors = [values[place] for place in binding.tensors]
    inputs = [_described(value.shape, value.dtype) for value in tensors]
    inputs += [
        _described([values[item.place] - item.less], torch.bool)
        for item in binding.extents.values()
    ]
    inputs += [_described([1], dtype) for _, dtype in binding.operands.values()]
    for name, item in zip(binding.input_names, inputs, strict=True):
        item["name"] = name
    results = [node.meta["val"] for node in segment.outputs]
    return {"inputs": inputs, "outputs": [_described(item.shape, item.dtype) for item in results]}


def _described(shape: Sequence[Any], dtype: torch.dtype) -> dict[str, Any]:
    extents = [size.node.expr if isinstance(size, torch.SymInt) else size for size in shape]
    return {"shape_exprs": extents, "dtype": dtype}


class TorchTensorRTRunner:
    """Runs an engine as `EngineRunner` does, through Torch-TensorRT."""

    def __init__(
        self,
        plan: Path | Plan,
        binding: Binding,
        held: object = None,
        *,
        described: Described | None = None,
    ) -> None:
        """Prepare to run; the engine is not loaded yet.

        Args:
            plan: the file, or where else it lies.
            binding: how the engine is called.
            held: whatever keeps the file where it is, for as long as this runner lives.
            described: from `describe`; without it the engine runs, and cannot be exported.

        Raises:
            OptionError: Torch-TensorRT is missing, or does not fit.
            RuntimeFailure: the engine writes to its inputs.
        """
        self._library = load_torch_tensorrt()
        if binding.in_place:
            raise RuntimeFailure(
                "the engine writes to its inputs, as to a key-value cache, and Torch-TensorRT "
                "makes all results anew: leave out the option runtime for this model"
            )
        self._held, self.plan, self.device = held, plan, binding.device
        self.inputs, self.outputs = binding.input_names, binding.output_names
        self.described = described
        self._tensors = tensors_of(binding)
        self._modules: dict[torch.device, torch.nn.Module] = {}
        self._lock = threading.Lock()

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        tensors = self._tensors(values)
        module = self.module(tensors[0].device if tensors else self.device)
        results = module(*(tensor.contiguous() for tensor in tensors))
        count_one("engine_calls")
        return [results] if isinstance(results, torch.Tensor) else list(results)

    def module(self, device: torch.device) -> torch.nn.Module:
        """Return Torch-TensorRT's module, which ``torch.export.export`` takes.

        Its inputs are those of the engine, in the order of ``inputs``.

        Raises:
            RuntimeFailure: Torch-TensorRT could not load the engine.
        """
        with self._lock:
            if device not in self._modules:
                self._modules[device] = self._load(device)
            return self._modules[device]

    def _load(self, device: torch.device) -> torch.nn.Module:
        library = self._library
        where = torch.cuda.current_device() if device.index is None else device.index
        settings = library.dynamo.CompilationSettings(device=library.Device(gpu_id=where))
        try:
            module: torch.nn.Module = library.runtime.TorchTensorRTModule(
                self._read(),
                list(self.inputs),
                list(self.outputs),
                name="singlecard",
                settings=settings,
                symbolic_shape_expressions=self.described,
            )
        except RuntimeError as error:
            raise RuntimeFailure(
                f"Torch-TensorRT could not load the engine {self.plan}: {error}"
            ) from error
        return module

    def _read(self) -> bytes:
        if isinstance(self.plan, Path):
            return self.plan.read_bytes()
        with self.plan.mapped() as content:
            return bytes(content)
