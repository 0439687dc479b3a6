"""Models as people write them: what training, pruning and quantization leave in a module."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

import singlecard
from singlecard.report.measure import GRAPH_BREAK
from tests.backend.harness import Watched, equal
from tests.graphs import simplified, targets


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 8)


class Symmetric(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.triu() + weight.triu(1).T


def symmetric() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", Symmetric())


#: How a weight is made of others, and whether all of that is known when the model is compiled.
WEIGHTS: dict[str, Callable[[], nn.Module]] = {
    "prune": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "structured prune": lambda: prune.ln_structured(linear(), "weight", 0.5, n=2, dim=0),
    "weight_norm": lambda: parametrizations.weight_norm(linear()),
    "old weight_norm": lambda: weight_norm(linear()),
    "spectral_norm": lambda: parametrizations.spectral_norm(linear()),
    "old spectral_norm": lambda: spectral_norm(linear()),
    "orthogonal": lambda: parametrizations.orthogonal(linear()),
    "own parametrization": symmetric,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_made_of_others(name: str) -> None:
    """A mask or norm that is not folded is worked out again in every call."""
    module = WEIGHTS[name]().eval()
    x = torch.randn(4, 8)
    compiled = Watched(module)
    for _ in range(2):
        with torch.no_grad():
            equal(compiled(x), module(x))
    assert compiled.reasons == []
    if name != "orthogonal":  # its matrix exponential, or Householder product, is an op of its own
        assert compiled.lowered == 1


def test_pruned_weight_is_one_constant() -> None:
    """The engine of a pruned model would hold the weight and its mask, and multiply each time."""
    program = simplified(prune.l1_unstructured(linear(), "weight", 0.5).eval(), torch.randn(4, 8))
    assert len(targets(program)) == 1
    constants = [item for _, item in program.module.named_buffers() if item.ndim == 2]
    assert len(constants) == 1 and int((constants[0] == 0).sum()) == 32


def test_pruning_after_compiling_is_noticed() -> None:
    """A mask put on later must not be left out of the answers."""
    module, x = linear().eval(), torch.randn(4, 8)
    compiled = Watched(module)
    compiled(x)
    prune.random_unstructured(module, "weight", 0.5)
    with torch.no_grad():
        equal(compiled(x), module(x))
        module.weight_mask.zero_()
        equal(compiled(x), module(x))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_inside_forward(reentrant: bool) -> None:
    """Models that save memory in training answer as one graph in inference."""
    block = nn.Sequential(linear(), nn.ReLU()).eval()
    compiled, x = (
        Watched(lambda x: checkpoint(block, x, use_reentrant=reentrant)),
        torch.randn(4, 8),
    )
    with torch.no_grad():
        equal(compiled(x), block(x))
    assert (compiled.lowered, compiled.reasons) == (2, [])


def test_fused_convolution() -> None:
    """fuse_conv_bn_eval leaves a plain convolution with new weights."""
    model = fuse_conv_bn_eval(nn.Conv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval())
    compiled, x = Watched(model), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        equal(compiled(x), model(x))
    assert (compiled.lowered, compiled.reasons) == (1, [])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantize_dynamic_stays_in_pytorch_with_the_reason() -> None:
    """Its weights are packed for the CPU: without a reason, no engine means guessing."""
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(linear(), nn.ReLU(), linear()).eval(), {nn.Linear}
    )
    x = torch.randn(4, 8)
    with torch.no_grad():
        equal(Watched(model)(x), model(x))
    report = singlecard.verify(model, (x,))
    assert report.engines == 0 and report.relative_l2 == 0
    assert {op for op, _ in report.fallback} == {GRAPH_BREAK}
    assert all("Dynamo cannot capture this" in reason for _, reason in report.fallback)


def test_hundreds_of_small_layers_are_one_graph_in_seconds() -> None:
    """Work that grows with the square of the depth makes a deep model take minutes."""
    torch.manual_seed(0)
    layers = [layer for _ in range(200) for layer in (nn.Linear(8, 8), nn.Tanh())]
    compiled, x = Watched(nn.Sequential(*layers).eval()), torch.randn(4, 8)
    started = time.process_time()
    got = compiled(x)
    assert time.process_time() - started < 30
    with torch.no_grad():
        equal(got, nn.Sequential(*layers)(x))
    assert [(graph.lowered_ops, graph.ops) for graph in compiled.session.graphs] == [(400, 400)]
    assert len(compiled.session.graphs[0].partition.segments) == 1  # type: ignore[union-attr]


def test_autocast_decorator_and_exceptions_to_it() -> None:
    """A region of FP32 inside autocast is there because FP16 is not enough."""
    one, two = linear().eval(), linear().eval()

    @torch.autocast("cpu", torch.bfloat16)
    def model(x: torch.Tensor) -> Any:
        y = one(x)
        with torch.autocast("cpu", enabled=False):
            z = two(y.float())
        return y, z, torch.matmul(z, z.t())

    compiled, x = Watched(model), torch.randn(4, 8)
    with torch.no_grad():
        equal(compiled(x), model(x), 3e-2)
    assert compiled.reasons == []


def test_channels_last_model() -> None:
    """Strides of the answer are what the caller's next layer is fast with."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 12, 12).to(memory_format=torch.channels_last)
    compiled = Watched(model)
    with torch.no_grad():
        got, want = compiled(x), model(x)
    equal(got, want)
    assert got.stride() == want.stride() and compiled.reasons == []


def test_half_on_the_cpu() -> None:
    """A half model keeps its type on a machine that is only used to check it."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval().half()
    compiled, x = Watched(model), torch.randn(2, 3, 8, 8).half()
    with torch.no_grad():
        equal(compiled(x), model(x), 5e-3)
    assert compiled.reasons == []


def test_meta_model_has_shapes_and_a_reason() -> None:
    """A model without weights can be asked for shapes, and says why nothing was lowered."""
    model, x = nn.Linear(8, 3, device="meta").eval(), torch.ones(2, 8, device="meta")
    compiled = Watched(model)
    got = compiled(x)
    assert (got.shape, got.device.type) == ((2, 3), "meta")
    assert compiled.lowered == 0
    assert all("meta" in reason for reason in compiled.reasons) and compiled.reasons


def test_half_of_a_model_on_another_device() -> None:
    """What lies on the other device must not take the rest with it."""
    here, there = nn.Linear(8, 8).eval(), nn.Linear(8, 3, device="meta").eval()

    def model(x: torch.Tensor) -> Any:
        y = here(x).relu()
        return y, there(y.to("meta"))

    compiled, x = Watched(model), torch.randn(4, 8)
    with torch.no_grad():
        got, want = compiled(x), model(x)
    equal(got[0], want[0])
    assert (got[1].shape, got[1].device.type) == ((4, 3), "meta")
    assert compiled.lowered == 2
    assert all("meta" in reason for reason in compiled.reasons) and compiled.reasons


def test_parametrization_that_is_cached() -> None:
    """Inside parametrize.cached() weights are tensors of no module."""
    module, x = symmetric().eval(), torch.randn(4, 8)
    compiled = Watched(module)
    with torch.no_grad(), warnings.catch_warnings(), parametrize.cached():
        for _ in range(2):
            equal(compiled(x), module(x))
