"""What goes wrong on a card, as a user meets it: in torch.compile, strict, and from an artifact.

The engine is built for real, and loaded and called by the real runtime; TensorRT's runtime objects
and the card are stand-ins.
"""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx as real
import torch
from torch import nn

from singlecard.errors import RuntimeFailure
from tests.runtime.on_stand_in import OnStandIn
from tests.runtime.stand_in import Machine

Bits = real.EngineInvalidityDiagnostics

#: What is wrong with an engine or its card, and words of the message.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "built for other cards": (
        {"bits": int(Bits.UNSUPPORTED_CC)},
        "built for other cards than this one: .*option targets",
    ),
    "an old driver": ({"bits": int(Bits.OLD_CUDA_DRIVER)}, "driver is too old .*update the driver"),
    "a card that is too small": (
        {"bits": int(Bits.INSUFFICIENT_GPU_MEMORY)},
        "too little memory for it: .*memory_budget",
    ),
    "no memory to load": ({"refusals": {"load": 99}}, "could not load .*out of memory"),
    "no memory for a context": (
        {"refusals": {"context": 99}},
        "could not create an execution context .*Free memory",
    ),
    "a launch that fails": ({"refusals": {"launch": 99}}, "could not launch .*launch failed"),
}


PAGE = Path(__file__).parents[2] / "docs" / "runtime.md"


@pytest.fixture
def process(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Iterator[OnStandIn]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield OnStandIn(machine, monkeypatch)
    torch._dynamo.reset()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("words", [words for _, words in FAULTS.values()])
def test_the_page_has_what_the_messages_say(words: str) -> None:
    """Who meets a message would not find it."""
    assert re.split(":? [.][*]", words)[0] in PAGE.read_text().partition("## When it cannot")[2]


def goes_on(process: OnStandIn, x: torch.Tensor) -> None:
    """Another model, which has no fault, runs on its engine in the same process."""
    process.faults = {}
    other = nn.Linear(8, 5).eval()
    launches = len(process.machine.launches)
    torch.testing.assert_close(process.compile(other)(x), other(x))
    assert len(process.machine.launches) == launches + 1


def nothing_is_left(machine: Machine) -> None:
    torch._dynamo.reset()
    gc.collect()
    assert not machine.engines and not machine.contexts and not machine.memory.used


@pytest.mark.parametrize("fault", FAULTS)
def test_pytorch_answers_and_the_reason_is_logged_once(
    process: OnStandIn, model: nn.Module, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A model would stop for a reason that eager PyTorch does not have."""
    machine, (process.faults, words) = process.machine, copy.deepcopy(FAULTS[fault])
    x = machine.tensor(torch.randn(2, 8))
    call = process.compile(model)
    for _ in range(3):
        torch.testing.assert_close(call(x), model(x))
    assert not machine.launches
    (told,) = [text for text in caplog.messages if "runs in PyTorch" in text]
    pytest.raises(RuntimeFailure, _raise, told).match(words)
    goes_on(process, x)
    del call, x
    nothing_is_left(machine)


@pytest.mark.parametrize("fault", FAULTS)
def test_strict_raises_at_each_call(process: OnStandIn, model: nn.Module, fault: str) -> None:
    """Who asks for engines alone must not get PyTorch's pace without being told."""
    machine, (process.faults, words) = process.machine, copy.deepcopy(FAULTS[fault])
    x = machine.tensor(torch.randn(2, 8))
    call = process.compile(model, strict=True)
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match=words):
            call(x)
    goes_on(process, x)
    del call, x
    nothing_is_left(machine)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_artifact_without_the_whole_model_raises(
    process: OnStandIn, model: nn.Module, fault: str
) -> None:
    """It has nothing else to answer with: the message says what would help."""
    machine, (process.faults, words) = process.machine, copy.deepcopy(FAULTS[fault])
    x = machine.tensor(torch.randn(2, 8))
    loaded = process.load(model, x, fallback=False)
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match=f"{words}.*fallback=True"):
            loaded(x)
    goes_on(process, x)
    del loaded, x
    nothing_is_left(machine)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_artifact_with_the_whole_model_answers_with_pytorch(
    process: OnStandIn, model: nn.Module, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The file was made so that it runs anywhere."""
    machine, (process.faults, words) = process.machine, copy.deepcopy(FAULTS[fault])
    x = machine.tensor(torch.randn(2, 8))
    loaded = process.load(model, x, fallback=True)
    for _ in range(3):
        torch.testing.assert_close(loaded(x), model(x))
    (told,) = [text for text in caplog.messages if "runs in PyTorch" in text]
    pytest.raises(RuntimeFailure, _raise, told).match(words)
    goes_on(process, x)
    del loaded, x
    nothing_is_left(machine)


@pytest.mark.parametrize("way", ["compiled", "strict", "loaded"])
def test_memory_that_runs_out_in_a_call(
    process: OnStandIn, model: nn.Module, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program takes the card's memory for a while: engines run again when it is back."""
    machine, x = process.machine, process.machine.tensor(torch.randn(2, 8))
    call: Callable[..., Any]
    if way == "loaded":
        call = process.load(model, x, fallback=True)
    else:
        call = process.compile(model, strict=way == "strict")
    expected = model(x)
    torch.testing.assert_close(call(x), expected)
    gc.collect()
    used, machine.memory.capacity = machine.memory.used, machine.memory.used + 8
    for _ in range(2):
        if way == "strict":
            with pytest.raises(RuntimeFailure, match="too little free memory .*smaller inputs"):
                call(x)
        else:
            torch.testing.assert_close(call(x), expected)
    assert len(machine.launches) == 1
    assert caplog.text.count("runs in PyTorch") == (way != "strict")
    gc.collect()
    assert machine.memory.used == used
    machine.memory.capacity = 1 << 20
    torch.testing.assert_close(call(x), expected)
    assert len(machine.launches) == 2
    del call, x
    nothing_is_left(machine)


def _raise(text: str) -> None:
    raise RuntimeFailure(text)
