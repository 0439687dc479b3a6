"""Weights that are mapped from files stay there: a model may be larger than half of memory."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import singlecard
from singlecard import session
from singlecard.capture.program import Program
from singlecard.capture.spill import Spill
from singlecard.lowering.lower import Lowered, lower
from singlecard.lowering.table import refusal
from singlecard.network.inspect import view_network
from singlecard.partition import divide
from singlecard.passes import simplify
from singlecard.precision.casts import lower_precision
from tests.graphs import program_of
from tests.maps import file_at

#: Constants above this are weights.
LARGE = 1 << 18


def layers(width: int = 1024) -> nn.Module:
    """Return layers whose weights reach a network by different ways."""
    return nn.Sequential(
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width, bias=False),
        nn.LayerNorm(width),
        nn.Unflatten(1, (16, width // 16)),
        nn.Conv1d(16, width, 64),
    )


def mapped_layers(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Write weights to a file and return a model whose weights are its pages."""
    save_file(layers().to(dtype).state_dict(), folder / "weights.safetensors")
    with torch.device("meta"):
        model = layers().eval()
    model.load_state_dict(load_file(folder / "weights.safetensors"), assign=True)
    return model


def lowered(program: Program) -> Lowered:
    partition = divide(program, refusal, None)
    (segment,) = partition.segments
    return lower(program, segment)


def files_of_constants(made: Lowered) -> list[str]:
    """Return the files that a network's weights lie in, "" for one in memory of no file."""
    return [
        file_at(weights.address)
        for layer in view_network(made.net.definition).layers
        for weights in layer.weights.values()
        if weights.nbytes > LARGE
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
def test_a_network_points_into_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    """A copy of each weight beside its file would be all that mapping it had saved."""
    model = mapped_layers(tmp_path, dtype)
    program = program_of(model, torch.randn(2, 1024).to(dtype))
    simplify(program)
    files = files_of_constants(lowered(program))
    assert files == [str(tmp_path / "weights.safetensors")] * 3


def test_converted_weights_point_into_another_file(tmp_path: Path) -> None:
    """A model in FP32 that is built in FP16 would hold half of its file in memory."""
    model = mapped_layers(tmp_path, torch.float32)
    program = program_of(model, torch.randn(2, 1024))
    program.spill = Spill(tmp_path / "cache", in_memory=0)
    simplify(program)
    lower_precision(program, torch.float16, lambda node: False)
    simplify(program)
    files = files_of_constants(lowered(program))
    assert len(files) == 3
    assert all(file.startswith(str(tmp_path / "cache")) for file in files)


def test_a_view_of_a_weight_is_no_copy(tmp_path: Path) -> None:
    """A weight that is only turned would be written to a file, which holds it already."""
    weight = nn.Parameter(torch.randn(512, 1024))
    program = program_of(lambda x: x * weight.t(), torch.randn(1024, 512))
    program.spill = Spill(tmp_path / "cache", in_memory=0)
    simplify(program)
    assert [value.data_ptr() for value in program.module.buffers()] == [weight.data_ptr()]


@pytest.mark.parametrize(
    "precision, kind",
    [("fp16", torch.float16), ("int8-weight", torch.int8), ("int4-weight", torch.int8)],
)
def test_files_change_neither_engine_nor_answers(
    precision: str, kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that was built with little memory would not be found with more, or be another."""
    model = mapped_layers(tmp_path, torch.float32)
    options = {"precision": precision, "cache_dir": tmp_path / "cache", "targets": ("sm89",)}
    held: list[torch.Tensor] = []

    class Watched(Spill):
        def hold(self, value: torch.Tensor) -> torch.Tensor:
            held.append(super().hold(value))
            return held[-1]

        def convert(self, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            held.append(super().convert(value, dtype))
            return held[-1]

    first = singlecard.verify(model, (torch.ones(2, 1024),), options=options)
    monkeypatch.setattr(session, "Spill", functools.partial(Watched, in_memory=0))
    again = singlecard.verify(model, (torch.ones(2, 1024),), options=options)
    assert any(file_at(value.data_ptr()) for value in held if value.dtype == kind)
    assert (first.built, again.built, again.engines) == (1, 0, 1)
    assert again.outputs.equal(first.outputs)


def test_weights_for_the_background_are_copied_to_a_file(tmp_path: Path) -> None:
    """What is built behind a running model would take as much memory again as the model."""
    weight = nn.Parameter(torch.randn(512, 1024))
    program = program_of(lambda x: x * weight, torch.randn(512, 1024))
    program.spill = Spill(tmp_path, in_memory=0)
    program.copy_constants()
    (copy,) = program.module.buffers()
    assert copy.equal(weight)
    assert file_at(copy.data_ptr()).startswith(str(tmp_path))


def test_transformers_loads_weights_mapped(tmp_path: Path) -> None:
    """What the documentation says of from_pretrained would not hold: the model would be copied."""
    config = LlamaConfig(
        hidden_size=512, intermediate_size=512, num_hidden_layers=1, vocab_size=512
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    large = [weight for weight in model.parameters() if weight.nbytes > LARGE]
    assert large
    assert all(file_at(weight.data_ptr()).startswith(str(tmp_path)) for weight in large)


#: Maps eight layers of 67 million weights each, and builds them with no more memory than is given,
#: beside the files, as a multiple of their size. RLIMIT_DATA counts private mappings of files too.
_LIMITED = """
import resource, sys
from pathlib import Path
import torch
from safetensors.torch import load_file
import singlecard

def held():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])

folder, share = Path(sys.argv[1]), float(sys.argv[2])
with torch.device("meta"):
    layers = [torch.nn.Linear(8192, 8192, bias=False) for _ in range(8)]
for number, layer in enumerate(layers):
    layer.load_state_dict(load_file(folder / f"{number}.safetensors"), assign=True)
model = torch.nn.Sequential(*layers).eval()
x = torch.zeros(1, 8192, dtype=layers[0].weight.dtype)
options = {"precision": "fp16", "targets": ("sm89",), "cache_dir": folder / "cache"}
options |= {"execution": "eager", "strict": True}
with torch.no_grad():  # what is imported and started once is not counted
    torch.compile(torch.nn.Linear(8, 8), backend="singlecard", options=options)(torch.ones(1, 8))
size = sum(layer.weight.nbytes for layer in layers)
limit = held() + int(share * size)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
with torch.no_grad():
    torch.compile(model, backend="singlecard", options=options)(x)
print(max(plan.stat().st_size for plan in folder.glob("cache/*/*/engine.plan")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype, share",
    [(torch.float16, 1.7), (torch.float32, 1.0)],
    ids=["fp16", "fp32"],
)
def test_a_build_in_less_memory_than_its_copies_take(
    dtype: torch.dtype, share: float, tmp_path: Path
) -> None:
    """A model that fits with its plan, and not with copies of its weights, could not be built."""
    for number in range(8):
        weight = torch.empty(8192, 8192).normal_(std=0.02).to(dtype)
        save_file({"weight": weight}, tmp_path / f"{number}.safetensors")
    command: Sequence[str] = (sys.executable, "-c", _LIMITED, str(tmp_path), str(share))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 8 * 8192 * 8192 * 2  # the plan of the whole model
