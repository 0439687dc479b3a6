"""Host memory that a card reads and writes: any CUDA card will do."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import singlecard
from singlecard.host_memory import host_bytes, host_view, on_cpu
from tests.gpu.test_engines import error

pytestmark = pytest.mark.gpu

MIB = 2**20


@pytest.fixture(autouse=True)
def on_a_card() -> Iterator[None]:
    """Any CUDA card will do."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    with torch.inference_mode():
        yield


def wide(layers: int = 4) -> nn.Module:
    """16 MiB of weights a layer, in FP32."""
    torch.manual_seed(0)
    made = [nn.Linear(2048, 2048) for _ in range(layers)]
    return nn.Sequential(*made).eval().requires_grad_(False)


def taken() -> int:
    """Return the bytes of the card that are in use."""
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def test_host_memory_is_memory_of_the_card() -> None:
    """Every op reads and writes it, the host sees what was written, and it is given back."""
    before = taken()
    memory = host_bytes(32 * MIB, torch.device("cuda", 0))
    assert taken() - before < 4 * MIB
    view = host_view(memory)
    assert view is not None and view.device.type == "cpu"
    memory.fill_(7)
    torch.cuda.synchronize()
    assert bool((view == 7).all())
    view[:10] = 3
    assert int(memory.long().sum()) == 7 * 32 * MIB - 40
    assert on_cpu(memory[5:20]).data_ptr() == view.data_ptr() + 5
    assert torch.equal(memory.cpu(), view) and torch.equal(memory.clone().cpu(), view)
    for value in range(20):  # a kernel that writes over the bus takes its time
        memory.fill_(value)
    assert bool((on_cpu(memory) == 19).all())
    del memory, view
    gc.collect()


def test_a_model_runs_from_host_memory_and_comes_back() -> None:
    """PyTorch answers as before, wherever the weights are."""
    model = wide().cuda()
    x = torch.randn(4, 2048, device="cuda")
    want = model(x)
    full = taken()
    assert singlecard.offload_weights(model) == sum(item.nbytes for item in model.parameters())
    assert full - taken() > 60 * MIB
    assert error(model(x), want) < 1e-6
    assert {item.device.type for item in model.state_dict().values()} == {"cuda"}
    assert singlecard.restore_weights(model) > 60 * MIB
    assert full - taken() < 8 * MIB
    assert error(model(x), want) < 1e-6


def test_a_model_on_the_cpu_goes_to_the_card_without_its_memory() -> None:
    """A model larger than the card has no other way there."""
    model, x = wide(), torch.randn(4, 2048)
    want, before = model(x), taken()
    singlecard.offload_weights(model)
    assert taken() - before < 16 * MIB
    assert error(model(x.cuda()).cpu(), want) < 1e-4
