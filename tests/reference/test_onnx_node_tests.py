"""The evaluator against the tests of each operator and option that the ``onnx`` package ships.

Each model goes through TensorRT's own parser, so what is checked is the meaning of the layers that
the parser makes of an operator. A model takes one of these ways:

* refused: the parser does not take it, also not with its parameters as initializers;
* undefined: it holds a layer that no engine can have, or that gives random values;
* excepted: parser or layer mean something else than ONNX, as ``onnx_node_exceptions`` says;
* passed: the answers are those that ONNX expects.

What the parser takes is tried again with all dimensions of its inputs left open, so that shapes
are computed in the network.
"""

from __future__ import annotations

import functools
import runpy
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test import loader
from torch import Tensor

from singlecard.errors import EvaluationError
from singlecard.network.flavour import tensorrt
from singlecard.network.inspect import LayerView, NetworkView, view_network
from singlecard.network.logger import Messages
from singlecard.network.versions import new_builder
from singlecard.reference import evaluate
from singlecard.reference.types import TORCH_DTYPES

EXCEPTIONS: Mapping[str, str] = runpy.run_path(
    str(Path(__file__).with_name("onnx_node_exceptions.py"))
)["EXCEPTIONS"]

#: The models are tried in shards of about 250, so that workers can share them.
SHARDS = 8

#: What passes in each with TensorRT-RTX 1.7.1 and onnx 1.23 (in all, 1193 and 1081 with open
#: dimensions); more is welcome.
FLOOR = 145
FLOOR_OPEN = 130

#: With open dimensions these end the process inside the parser (TensorRT-RTX 1.7.1).
CRASHES_WHEN_OPEN = frozenset({"NonMaxSuppression", "TopK"})

#: How far an answer may be off, relative to itself and to the largest element of its tensor: a sum
#: that cancels keeps the error of its largest terms. Some FP32 answers are written down with four
#: digits; where ONNX computes in FP16 or BF16 it rounds in other places than TensorRT. All other
#: types must be equal.
TOLERANCES = {
    torch.float32: (2e-4, 2e-6),
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (2e-2, 8e-3),
}

ON_DISK = ("simple", "pytorch-operator", "pytorch-converted")
_QUANTIZED = frozenset({"fp8", "int4", "fp4", "e8m0"})


@dataclass(frozen=True)
class Case:
    """A model, with inputs and the outputs that ONNX expects, as ONNX has them."""

    name: str
    model: Any
    data_sets: Any


@dataclass(frozen=True)
class Outcome:
    """Which way a model took, and why."""

    way: str
    reason: str = ""
    passed_open: bool = False


class _Silence(tensorrt().ILogger):  # type: ignore[misc]
    """The parser logs an error for every model that it refuses; most are."""

    def log(self, severity: Any, message: str) -> None:
        del severity, message


_LOGGER = _Silence()


def cases() -> Iterator[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX computes what it expects, with its overflows.
        for case in loader.load_model_tests(kind="node"):
            yield Case(case.name, case.model, case.data_sets)
    for kind in ON_DISK:
        for case in loader.load_model_tests(kind=kind):
            folder = Path(str(case.model_dir))
            data = [
                (_read(part, "input"), _read(part, "output"))
                for part in sorted(folder.glob("test_data_set_*"))
            ]
            yield Case(case.name, onnx.load(folder / "model.onnx"), data)


def _read(folder: Path, role: str) -> list[Any]:
    values = []
    for index in range(len(list(folder.glob(f"{role}_*.pb")))):
        value = onnx.TensorProto()
        value.ParseFromString((folder / f"{role}_{index}.pb").read_bytes())
        values.append(value)
    return values


def tensor_of(value: Any) -> Tensor:
    """An ONNX value as a torch tensor; 4-bit types as the evaluator holds them."""
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
    array = np.asarray(array)
    match array.dtype.name:
        case "bfloat16":
            return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
        case "float8_e4m3fn":
            return torch.from_numpy(array.view(np.uint8).copy()).view(torch.float8_e4m3fn)
        case "int4":
            return torch.from_numpy(array.astype(np.int8))
        case "float4_e2m1fn" | "float64":  # TensorRT has no FP64: the parser makes it FP32.
            return torch.from_numpy(array.astype(np.float32))
        case _:
            return torch.from_numpy(array.copy(order="C"))


def parse(builder: Any, model: onnx.ModelProto) -> tuple[Any, Any] | None:
    """The network and the parser, which owns its weights; None if the parser refuses the model."""
    network = builder.create_network()
    parser = tensorrt().OnnxParser(network, _LOGGER)
    return (network, parser) if parser.parse(model.SerializeToString()) else None


def with_initializers(case: Case) -> onnx.ModelProto | None:
    """The model with all inputs but the first as initializers, as real models have them.

    The node tests make an input of everything; TensorRT wants axes and the like as constants.
    """
    inputs, values = case.model.graph.input, case.data_sets[0][0]
    if len(case.data_sets) > 1 or len(inputs) < 2 or len(inputs) != len(values):
        return None
    if not all(isinstance(value, (np.ndarray, np.generic, onnx.TensorProto)) for value in values):
        return None  # A sequence or an optional that is not there.
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for info, value in list(zip(inputs, values, strict=True))[1:]:
        given = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value)
        model.graph.initializer.add().CopyFrom(given)
        model.graph.initializer[-1].name = info.name
    del model.graph.input[1:]
    return model


def with_open_dimensions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every dimension of its inputs only known at run time."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for number, info in enumerate(result.graph.input):
        for axis, dimension in enumerate(info.type.tensor_type.shape.dim):
            dimension.dim_param = f"input{number}_axis{axis}"
    del result.graph.value_info[:]
    for info in result.graph.output:
        info.type.tensor_type.ClearField("shape")
    return result


def is_undefined(layer: LayerView) -> bool:
    """The builder takes no cast to or from a quantized type; random numbers have no value."""
    if layer.kind == "CAST":
        source, target = layer.inputs[0], layer.outputs[0]
        types = {target.dtype, target.dtype if source is None else source.dtype}
        return len(types) == 2 and bool(types & _QUANTIZED)
    return layer.kind == "FILL" and layer.attributes["operation"] != "LINSPACE"


def feeds_of(case: Case, view: NetworkView, values: list[Any]) -> dict[str, Tensor]:
    graph = case.model.graph
    own = {initializer.name for initializer in graph.initializer}
    names = [info.name for info in graph.input if info.name not in own]
    by_name = dict(zip(names, values, strict=True))
    if len(view.inputs) == len(values):  # A loop renames network inputs to those of its body.
        by_name = {tensor.name: value for tensor, value in zip(view.inputs, values, strict=True)}
    return {tensor.name: tensor_of(by_name[tensor.name]) for tensor in view.inputs}


def difference(name: str, got: Tensor, expected: Tensor) -> str:
    """What is wrong with an answer; nothing if it is within its tolerance."""
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return f"{name}: {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}"
    relative, largest = TOLERANCES.get(got.dtype, (0.0, 0.0))
    wanted = expected.double()
    finite = wanted[wanted.isfinite()].abs()
    absolute = largest * (float(finite.max()) if finite.numel() else 0.0)
    close = torch.isclose(got.double(), wanted, relative, absolute, equal_nan=True)
    if bool(close.all()):
        return ""
    place = tuple((~close).nonzero()[0].tolist())
    return f"{name}{list(place)}: {got[place].item()}, not {expected[place].item()}"


def outcome_of(builder: Any, case: Case) -> Outcome:
    model = case.model
    parsed = parse(builder, model)
    if parsed is None and (constant := with_initializers(case)) is not None:
        model = constant
        parsed = parse(builder, model)
    if parsed is None:
        return Outcome("refused")
    outcome = run(parsed, case)
    operators = {node.op_type for node in case.model.graph.node}
    if outcome.way != "passed" or operators & CRASHES_WHEN_OPEN:
        return outcome
    parsed = parse(builder, with_open_dimensions(model))
    if parsed is None:
        return outcome
    again = run(parsed, case)
    if again.way != "passed":
        return Outcome("failed", f"with open dimensions: {again.reason}")
    return Outcome("passed", passed_open=True)


def run(parsed: tuple[Any, Any], case: Case) -> Outcome:
    view = view_network(parsed[0])
    undefined = any(map(is_undefined, view.layers))
    for inputs, expected in case.data_sets:
        try:
            answers = evaluate(view, feeds_of(case, view, inputs))
        except EvaluationError as error:
            return Outcome("undefined" if undefined else "failed", str(error))
        for tensor, wanted in zip(view.outputs, expected, strict=True):
            wrong = difference(tensor.name, answers[tensor.name], tensor_of(wanted))
            if wrong:
                return Outcome("failed", wrong)
    return Outcome("undefined, and passed" if undefined else "passed")


@functools.cache
def all_cases() -> tuple[Case, ...]:
    return tuple(sorted(cases(), key=lambda case: case.name))


def test_models_in_a_process_of_their_own() -> None:
    """The ONNX parser of TensorRT-RTX 1.7.1 crashes now and then: it must not take others along.

    A process that a signal ended says nothing and is tried again; one that answers is believed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow"]
    for _ in range(4):
        done = subprocess.run(
            [*command, "-k", "give_the_answers", __file__], capture_output=True, text=True
        )
        if done.returncode >= 0:
            break
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_models_give_the_answers_of_onnx(shard: int) -> None:
    """Without it, a lowering could be called wrong, or right, by a wrong judge."""
    builder = new_builder(_LOGGER, Messages())
    outcomes = {case.name: outcome_of(builder, case) for case in all_cases()[shard::SHARDS]}
    by_way: dict[str, dict[str, str]] = defaultdict(dict)
    for name, outcome in outcomes.items():
        by_way[outcome.way][name] = outcome.reason
    wrong = {name: why for name, why in by_way["failed"].items() if name not in EXCEPTIONS}
    assert not wrong, "\n".join(f"{name}: {why}" for name, why in wrong.items())
    stale = outcomes.keys() & EXCEPTIONS.keys() - by_way["failed"].keys()
    assert not stale, f"these are no exceptions any more, take them off the list: {stale}"
    # A network that no engine can compute is refused, and the layer named.
    assert not by_way["undefined, and passed"]
    assert all("layer '" in reason for reason in by_way["undefined"].values())
    # A parser that suddenly refused everything would pass all of the above.
    assert len(by_way["passed"]) >= FLOOR
    assert sum(outcome.passed_open for outcome in outcomes.values()) >= FLOOR_OPEN


def test_exceptions_are_tests_of_onnx() -> None:
    """The documentation would speak of a limit that nothing shows."""
    assert EXCEPTIONS.keys() <= {case.name for case in all_cases()}


def test_types_of_the_evaluator_are_those_of_tensorrt() -> None:
    """A type that a new TensorRT adds would end in a KeyError for its user."""
    assert len(TORCH_DTYPES) == len(tensorrt().DataType.__members__)
