"""Engines on a card give eager PyTorch's answers: six models, sizes, streams, threads, memory."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import singlecard

pytestmark = pytest.mark.gpu

MODELS = ("resnet50", "vit_b16", "bert_base", "gpt2", "llama", "minilm")


def compiled(model: Any, folder: Path, **more: Any) -> Callable[..., Any]:
    options = {"precision": "fp16", "execution": "engine", "strict": True, "cache_dir": folder}
    call: Callable[..., Any] = torch.compile(
        model, backend="singlecard", options={**options, **more.pop("options", {})}, **more
    )
    return call


def on_card(values: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda item: item.cuda(), values)


def error(got: Any, want: Any) -> float:
    """Relative L2 over all floating-point results."""
    squares = norm = 0.0
    for a, b in zip(pytree.tree_leaves(got), pytree.tree_leaves(want), strict=True):
        if isinstance(b, Tensor) and b.is_floating_point():
            squares += float((a.double() - b.double()).square().sum())
            norm += float(b.double().square().sum())
    return float((squares / norm) ** 0.5)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval().cuda()


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, tmp_path: Path) -> None:
    """The models that the project is measured by."""
    examples = str(Path(__file__).parents[2] / "examples")
    if examples not in sys.path:
        sys.path.insert(0, examples)
    module, args, kwargs = getattr(importlib.import_module("models"), name)()
    module = module.cuda()
    args, kwargs = on_card((args, kwargs))
    want = module(*args, **kwargs)
    call = compiled(module, tmp_path)
    for _ in range(3):
        assert error(call(*args, **kwargs), want) < 5e-3


def test_sizes_that_vary(tmp_path: Path) -> None:
    """One engine, other shapes from call to call, and a shape that comes back."""
    model = mlp()
    call = compiled(model, tmp_path, dynamic=True)
    for rows in (8, 3, 8, 17, 3):
        x = torch.randn(rows, 64, device="cuda")
        assert error(call(x), model(x)) < 5e-3
    assert len(list(tmp_path.rglob("engine.plan"))) == 1


def test_streams(tmp_path: Path) -> None:
    """Work on two streams at a time, with inputs made on another one."""
    model = mlp()
    call = compiled(model, tmp_path)
    x = torch.randn(64, 64, device="cuda")
    want = model(x)
    call(x)
    streams = [torch.cuda.Stream() for _ in range(2)]
    results: list[Tensor] = []
    for turn in range(50):
        stream = streams[turn % 2]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            results.append(call(x * 1))
    torch.cuda.synchronize()
    assert all(error(result, want) < 5e-3 for result in results)


def test_threads(tmp_path: Path) -> None:
    """A server calls one model from many threads."""
    model = mlp()
    call = compiled(model, tmp_path)
    inputs = [torch.randn(16, 64, device="cuda") for _ in range(4)]
    call(inputs[0])
    worst: list[float] = []

    def work(x: Tensor) -> None:
        with torch.inference_mode():
            want = model(x)
            worst.append(max(error(call(x), want) for _ in range(100)))

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4 and max(worst) < 5e-3


def test_cuda_graphs(tmp_path: Path) -> None:
    """An engine is one of many launches that a graph of PyTorch's replays."""
    model = mlp()
    call = compiled(model, tmp_path)
    x = torch.randn(16, 64, device="cuda")
    for _ in range(3):
        call(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call(x)
    fresh = torch.randn(16, 64, device="cuda")
    x.copy_(fresh)
    graph.replay()
    torch.cuda.synchronize()
    assert error(result, model(fresh)) < 5e-3


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", torch.zeros(64))
        self.linear = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        return self.linear(x) + self.total


def test_state(tmp_path: Path) -> None:
    """What a model writes to its own tensors is there at the next call."""
    torch.manual_seed(0)
    model, expected = Counting().cuda(), Counting().cuda()
    expected.load_state_dict(model.state_dict())
    call = compiled(model, tmp_path)
    x = torch.randn(4, 64, device="cuda")
    for _ in range(3):
        assert error(call(x), expected(x)) < 5e-3
    assert error(model.total, expected.total) < 5e-3


def test_a_second_start_captures_nothing(tmp_path: Path) -> None:
    """A recalled engine answers like the one that was built."""
    model = mlp()
    x = torch.randn(16, 64, device="cuda")
    want = compiled(model, tmp_path)(x)
    torch._dynamo.reset()
    before = singlecard.counters()
    assert torch.equal(compiled(model, tmp_path)(x), want)
    counted = singlecard.counters() - before
    assert (counted.hits, counted.builds) == (1, 0)


def test_wrong_inputs_are_answered_by_pytorch(tmp_path: Path) -> None:
    """A shape outside of the range costs time, not the answer."""
    model = mlp()
    options = {"profiles": {"input": {0: (1, 8, 16)}}, "strict": False}
    call = compiled(model, tmp_path, dynamic=True, options=options)
    for rows in (8, 40):
        x = torch.randn(rows, 64, device="cuda")
        assert error(call(x), model(x)) < 5e-3


def test_memory_of_a_call(tmp_path: Path) -> None:
    """Two engines on a stream share their scratch: its size is counted once."""
    models = [mlp(), mlp()]
    calls = [compiled(model, tmp_path / str(at)) for at, model in enumerate(models)]
    x = torch.randn(256, 64, device="cuda")
    for call in calls:
        call(x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for call in calls:
        call(x)
    torch.cuda.synchronize()
    results = 2 * x.numel() * x.element_size()
    assert torch.cuda.max_memory_allocated() - before <= results * 1.03 + 2**20


def test_a_thousand_calls_take_no_more_memory(tmp_path: Path) -> None:
    """A leak of a kilobyte a call ends a service in a week."""
    model = mlp()
    call = compiled(model, tmp_path)
    x = torch.randn(64, 64, device="cuda")
    for _ in range(20):
        call(x)
    torch.cuda.synchronize()
    allocated, used = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(1000):
        call(x)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= allocated
    assert used - torch.cuda.mem_get_info()[0] < 2**21


def test_an_artifact_runs(tmp_path: Path) -> None:
    """What was exported without a card is mapped from its file and runs on one."""
    model = mlp()
    x = torch.randn(16, 64, device="cuda")
    target = "sm" + "".join(map(str, torch.cuda.get_device_capability()))
    options = {"precision": "fp16", "targets": target, "cache_dir": tmp_path / "cache"}
    file = tmp_path / "mlp.singlecard"
    singlecard.export(model.cpu(), (x.cpu(),), path=file, options=options)
    loaded = singlecard.load(file, device="cuda")
    assert loaded.refusal is None
    assert error(loaded(x), model.cuda()(x)) < 5e-3
