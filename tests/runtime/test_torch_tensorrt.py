"""Engines through Torch-TensorRT. It does not load without a CUDA device: a stand-in takes its
place here, with the signatures of its version 2.13."""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from singlecard.errors import OptionError, RuntimeFailure
from singlecard.lowering.lower import Extent
from singlecard.network.flavour import flavour_name, flavour_version
from singlecard.runtime.binding import Binding
from singlecard.runtime.torch_tensorrt import TorchTensorRTRunner, describe

CPU = torch.device("cpu")


class StandIn(torch.nn.Module):
    """Takes what ``torch_tensorrt.runtime.TorchTensorRTModule`` takes, and adds its inputs up."""

    made: list[StandIn] = []

    def __init__(
        self,
        serialized_engine: bytes | None = None,
        input_binding_names: list[str] | None = None,
        output_binding_names: list[str] | None = None,
        *,
        name: str = "",
        settings: Any = None,
        requires_output_allocator: bool = False,
        requires_native_multidevice: bool = False,
        symbolic_shape_expressions: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        if serialized_engine == b"damaged":
            raise RuntimeError("Unable to deserialize the TensorRT engine")
        self.given = serialized_engine, input_binding_names, output_binding_names
        self.settings, self.expressions = settings, symbolic_shape_expressions
        StandIn.made.append(self)

    def forward(self, *inputs: torch.Tensor) -> Any:
        assert len(inputs) == len(self.given[1] or ())
        assert all(tensor.is_contiguous() for tensor in inputs)
        outputs = tuple(
            sum(float(tensor.numel()) for tensor in inputs) + torch.full((1,), float(at))
            for at, _ in enumerate(self.given[2] or ())
        )
        return outputs[0] if len(outputs) == 1 else outputs


@dataclass
class Settings:
    device: Any = None


def _module(name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="stand-in")
    vars(module).update(content)
    return module


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put the stand-in where Torch-TensorRT would be, with the TensorRT that is installed here."""
    StandIn.made.clear()
    library = _module(
        "torch_tensorrt",
        __version__="2.13.0",
        tensorrt_package_name=flavour_name(),
        ENABLED_FEATURES=SimpleNamespace(torch_tensorrt_runtime=True),
        Device=lambda *, gpu_id: SimpleNamespace(gpu_id=gpu_id),
        dynamo=SimpleNamespace(CompilationSettings=Settings),
        runtime=SimpleNamespace(TorchTensorRTModule=StandIn),
    )
    monkeypatch.setitem(sys.modules, "torch_tensorrt", library)
    behind = _module("tensorrt", __version__=flavour_version())
    monkeypatch.setitem(sys.modules, "tensorrt", behind)
    return library


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan"
    file.write_bytes(b"the plan")
    return file


def _binding(
    tensors: Sequence[int] = (0,),
    extents: dict[str, Extent] | None = None,
    outputs: int = 1,
    in_place: dict[int, int] | None = None,
) -> Binding:
    cuda = torch.device("cuda", 1)
    return Binding(tuple(tensors), extents or {}, outputs, in_place or {}, {}, cuda)


def _run(runner: TorchTensorRTRunner, values: Sequence[Any]) -> list[Any]:
    runner._modules[CPU] = runner._load(torch.device("cuda", 1))
    return list(runner(values))


def test_the_plan_and_its_names_arrive_in_order(library: ModuleType, plan: Path) -> None:
    """Names in another order would feed one input to the place of another, without an error."""
    runner = TorchTensorRTRunner(plan, _binding([2, 0], outputs=2))
    values = [torch.ones(3), 7, torch.ones(2, 4).t()]
    assert [float(item) for item in _run(runner, values)] == [11, 12]
    (made,) = StandIn.made
    assert made.given == (b"the plan", list(runner.inputs), list(runner.outputs))
    assert made.settings.device.gpu_id == 1


def test_one_output_is_a_list_as_well(library: ModuleType, plan: Path) -> None:
    """Torch-TensorRT returns a lone tensor bare; taken for a list, it would be cut in rows."""
    (result,) = _run(TorchTensorRTRunner(plan, _binding()), [torch.ones(5)])
    assert result.tolist() == [5]


def test_a_number_is_given_by_a_length(library: ModuleType, plan: Path) -> None:
    """An engine takes numbers as lengths: without them a dynamic model gets wrong shapes."""
    runner = TorchTensorRTRunner(plan, _binding([1], {"size": Extent(0)}))
    (result,) = _run(runner, [9, torch.ones(4)])
    assert result.tolist() == [13]


def test_an_engine_is_loaded_once_for_a_device(library: ModuleType, plan: Path) -> None:
    """Loading at each call would cost the time and the memory of an engine at each call."""
    runner = TorchTensorRTRunner(plan, _binding())
    first, again = (runner.module(torch.device("cuda", 1)) for _ in range(2))
    other = runner.module(torch.device("cuda", 0))
    assert first is again and first is not other
    assert [made.settings.device.gpu_id for made in StandIn.made] == [1, 0]


def test_a_plan_inside_of_another_file_is_read(library: ModuleType) -> None:
    """Plans of a saved model have no file of their own, and are to run here too."""

    class Inside:
        @contextmanager
        def mapped(self) -> Any:
            yield memoryview(b"inside")

    runner = TorchTensorRTRunner(Inside(), _binding())
    runner.module(torch.device("cuda", 0))
    assert StandIn.made[0].given[0] == b"inside"


def test_a_plan_that_does_not_load_is_named(library: ModuleType, tmp_path: Path) -> None:
    """Without the file's name nobody knows which engine to remove."""
    file = tmp_path / "damaged"
    file.write_bytes(b"damaged")
    with pytest.raises(RuntimeFailure, match="could not load the engine .*damaged: Unable to"):
        TorchTensorRTRunner(file, _binding()).module(torch.device("cuda", 0))


def test_an_engine_that_writes_in_place_is_refused(library: ModuleType, plan: Path) -> None:
    """Torch-TensorRT would write new keys to new memory, and the model forget all it has read."""
    with pytest.raises(RuntimeFailure, match="writes to its inputs.*leave out the option runtime"):
        TorchTensorRTRunner(plan, _binding([0, 1], in_place={0: 1}))


def _refusal(plan: Path) -> str:
    with pytest.raises(OptionError) as caught:
        TorchTensorRTRunner(plan, _binding())
    return str(caught.value)


def test_missing(monkeypatch: pytest.MonkeyPatch, plan: Path) -> None:
    """Who asks for Torch-TensorRT without having it must read what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "not installed: pip install 'singlecard[torch-tensorrt]'" in _refusal(plan)


def test_installed_and_broken(library: ModuleType, monkeypatch: Any, plan: Path) -> None:
    """Without a CUDA device its import fails in ways of its own, which must not escape as such."""

    def fail(name: str) -> ModuleType:
        raise Exception("import error when try to import _TensorRTProxyModule")

    monkeypatch.setattr("importlib.import_module", fail)
    refusal = _refusal(plan)
    assert "does not load (Exception: import error" in refusal and "CUDA device" in refusal


def test_without_its_runtime(library: ModuleType, plan: Path) -> None:
    """The Python-only build of Torch-TensorRT has nothing that a saved program could load."""
    library.ENABLED_FEATURES.torch_tensorrt_runtime = False
    assert "2.13.0 was made without" in _refusal(plan)


def test_another_flavour(library: ModuleType, plan: Path) -> None:
    """A plan of one flavour crashes in the other, or is refused with words that help nobody."""
    vars(library)["tensorrt_package_name"] = "tensorrt"
    vars(sys.modules["tensorrt"])["__version__"] = "11.0.0.114"
    refusal = _refusal(plan)
    assert f"builds with {flavour_name()} {flavour_version()}" in refusal
    assert "runs tensorrt 11.0.0.114: set SINGLECARD_FLAVOUR=tensorrt" in refusal


def test_another_version(library: ModuleType, plan: Path) -> None:
    """An engine is good for the version that built it alone."""
    vars(sys.modules["tensorrt"])["__version__"] = "1.5.0.114"
    assert "install the same version of both" in _refusal(plan)


def test_shapes_are_described_with_their_symbols(library: ModuleType, plan: Path) -> None:
    """Without them ``torch.export`` cannot tell the shape of a result, and refuses the engine."""

    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x]).to(torch.float16)

    batch = torch.export.Dim("batch", min=2, max=8)
    exported = torch.export.export(Sum(), (torch.ones(4, 3),), dynamic_shapes=({0: batch},))
    nodes = list(exported.graph.nodes)
    segment: Any = SimpleNamespace(
        inputs=[node for node in nodes if node.op == "placeholder"],
        outputs=list(nodes[-1].args[0]),
    )
    described = describe(segment, _binding())
    ((symbol, three),) = [item["shape_exprs"] for item in described["inputs"]]
    assert described["inputs"][0]["dtype"] == torch.float32 and three == 3
    assert described["inputs"][0]["name"] == _binding().input_names[0]
    (output,) = described["outputs"]
    assert output["shape_exprs"] == [2 * symbol, 3] and output["dtype"] == torch.float16
    TorchTensorRTRunner(plan, _binding(), described=described).module(torch.device("cuda", 0))
    assert StandIn.made[0].expressions == described
