"""What cannot run says why and what to do, leaves nothing behind, and the process goes on."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tensorrt_rtx as real
import torch

from singlecard.errors import RuntimeFailure
from singlecard.runtime import device
from singlecard.runtime.ranged import in_range
from tests.runtime.engines import F32, X, Y, binding, caching, doubling, positives, runner
from tests.runtime.stand_in import Machine

Bits = real.EngineInvalidityDiagnostics


def _answers(machine: Machine, run: Callable[[Sequence[Any]], Sequence[Any]]) -> None:
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(run([x])[0], x * 2)


def test_another_type_is_refused(machine: Machine) -> None:
    """TensorRT would read the bytes as numbers of another kind."""
    run = runner(machine, doubling())
    with pytest.raises(RuntimeFailure, match=r"input_0 takes torch.float32 .* got torch.float16"):
        run([machine.tensor(torch.randn(2, 3)).half()])
    _answers(machine, run)


def test_another_device_is_refused(machine: Machine) -> None:
    """An address of another card, or of the host, ends the process."""
    run = runner(machine, caching())
    x = machine.tensor(torch.randn(2, 4))
    with pytest.raises(RuntimeFailure, match="input_1 takes .* on cpu, got .* on meta: move"):
        run([x, torch.empty(2, 4, device="meta")])


def test_another_shape_is_refused_and_the_next_call_is_right(machine: Machine) -> None:
    """A shape that was half set would stay for the next call."""
    run = runner(machine, doubling())
    _answers(machine, run)
    for shape in ((3, 3), (2, 3, 1)):
        with pytest.raises(RuntimeFailure, match="does not take the shape"):
            run([machine.tensor(torch.randn(shape))])
        _answers(machine, run)


def test_a_shape_that_was_set_before_another_was_refused_is_set_back(machine: Machine) -> None:
    """The first input's shape is TensorRT's already when the second one is refused."""
    spec = doubling(
        inputs={X: (F32, (-1,)), Y: (F32, (3,))},
        compute=lambda values: [values[0] * values[1].sum()],
    )
    run = runner(machine, spec)
    x, y = machine.tensor(torch.randn(4)), machine.tensor(torch.ones(3))
    torch.testing.assert_close(run([x, y])[0], x * 3)
    with pytest.raises(RuntimeFailure, match="input_1 does not take the shape"):
        run([machine.tensor(torch.randn(6)), machine.tensor(torch.ones(2))])
    torch.testing.assert_close(run([x, y])[0], x * 3)


@pytest.mark.parametrize(
    "bit, problem",
    [
        (
            Bits.VERSION_MISMATCH,
            r"another version of TensorRT built it than tensorrt_rtx \d.*build",
        ),
        (Bits.UNSUPPORTED_CC, "built for other cards than this one: .*option targets"),
        (Bits.OLD_CUDA_DRIVER, "driver is too old for it: update the driver"),
        (Bits.OLD_CUDA_RUNTIME, "CUDA runtime is too old"),
        (Bits.INSUFFICIENT_GPU_MEMORY, "too little memory for it: .*memory_budget"),
        (Bits.MALFORMED_ENGINE, "damaged, or no engine: remove it"),
        (Bits.CUDA_ERROR, "nvidia-smi"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_plan_that_cannot_run_here_is_not_loaded(
    machine: Machine, bit: Bits, problem: str
) -> None:
    """Deserializing gigabytes to learn it takes seconds, and ends in a message about internals."""
    run = runner(machine, doubling(bits=int(bit)))
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match=problem):
            run([machine.tensor(torch.randn(2, 3))])
    names = [name for _, name, _ in machine.calls]
    assert names == ["get_engine_validity"]  # asked once, and never loaded


def test_every_problem_of_the_library_has_its_words() -> None:
    """A new reason would be passed over in silence."""
    from singlecard.network import validity

    assert set(validity._PROBLEMS) == set(Bits.__members__)


def test_several_problems_are_all_named(machine: Machine) -> None:
    """Who cures one would meet the next."""
    run = runner(machine, doubling(bits=int(Bits.OLD_CUDA_DRIVER) | int(Bits.UNSUPPORTED_CC)))
    with pytest.raises(RuntimeFailure, match="other cards .* and .*driver .*targets; update"):
        run([machine.tensor(torch.randn(2, 3))])


def test_a_plan_that_tensorrt_refuses_says_so_in_its_words(machine: Machine) -> None:
    """'None' is no reason."""
    run = runner(machine, doubling(refusals={"load": 1}))
    with pytest.raises(RuntimeFailure, match="could not load .*engine.plan: OutOfMemory"):
        run([machine.tensor(torch.randn(2, 3))])
    gc.collect()
    assert not machine.engines


@pytest.mark.parametrize("what", ["load", "context"])
def test_memory_that_pytorch_keeps_is_given_back_for_another_try(
    machine: Machine, what: str
) -> None:
    """A card that is full of what PyTorch keeps for later would run nothing."""
    machine.card.cached = True
    _answers(machine, runner(machine, doubling(refusals={what: 1})))


def test_no_context_is_a_reason_and_is_not_tried_at_each_call(machine: Machine) -> None:
    """The JIT takes seconds, which every call would pay before its eager answer."""
    run = runner(machine, doubling(refusals={"context": 1}))
    for _ in range(3):
        with pytest.raises(RuntimeFailure, match="could not create an execution context .*memory"):
            run([machine.tensor(torch.randn(2, 3))])
    made = [name for _, name, _ in machine.calls if name == "create_execution_context"]
    assert len(made) == 1


def test_a_launch_that_fails_is_a_reason_and_the_next_may_run(machine: Machine) -> None:
    """The process goes on."""
    run = runner(machine, doubling(refusals={"launch": 1}))
    with pytest.raises(RuntimeFailure, match="could not launch the engine: launch failed"):
        run([machine.tensor(torch.randn(2, 3))])
    _answers(machine, run)


@pytest.mark.parametrize("spec", [doubling, positives], ids=["known size", "unknown size"])
def test_memory_that_runs_out_during_a_call(machine: Machine, spec: Callable[..., Any]) -> None:
    """The caller would get PyTorch's error from within TensorRT, or none at all."""
    spec = spec(scratch=0)
    run, shape = runner(machine, spec), next(iter(spec.inputs.values()))[1]
    x = machine.tensor(torch.randn(shape).abs() + 1)
    expected = [value.clone() for value in run([x])]
    gc.collect()
    used = machine.memory.used
    machine.memory.capacity = used + 8
    with pytest.raises(RuntimeFailure, match="too little free memory to run"):
        run([x])
    gc.collect()
    assert machine.memory.used == used
    machine.memory.capacity = 1 << 20
    torch.testing.assert_close(list(run([x])), expected)


def test_what_an_engine_cannot_do_is_done_in_pytorch(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """A model would stop for a reason that eager PyTorch does not have."""
    told = binding()
    run = runner(machine, doubling(refusals={"launch": 2}))
    call = in_range(run, told, lambda values: [values[0] + values[0]])
    for _ in range(3):
        _answers(machine, call)
    assert caplog.text.count("this part runs in PyTorch") == 1
    assert len(machine.launches) == 1


class _Card:
    """What `torch.cuda` says of a machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")


class _On:
    def __init__(self, name: str) -> None:
        self.device = torch.device(name)


def test_a_data_centre_card_is_named_with_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who rents one would look for the fault in the model."""
    _Card(monkeypatch, (9, 0))
    refusal = device.card_refusal([_On("cuda:1")])  # type: ignore[list-item]
    assert refusal is not None
    assert "card 1 (cuda:1) has compute capability 9.0" in refusal
    assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in refusal


def test_full_tensorrt_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves data-centre cards too."""
    _Card(monkeypatch, (9, 0))
    monkeypatch.setattr(device, "flavour_name", lambda: "tensorrt")
    assert device.card_refusal([_On("cuda:0")]) is None  # type: ignore[list-item]


def test_a_card_that_is_served_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines would never run."""
    _Card(monkeypatch, (8, 9))
    assert device.card_refusal([_On("cuda:0")]) is None  # type: ignore[list-item]
    refusal = device.card_refusal([_On("cuda:0"), _On("cuda:1")])  # type: ignore[list-item]
    assert refusal is not None and "cuda:0, cuda:1" in refusal


def test_a_pytorch_without_cuda_is_told_from_a_machine_without_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has a card would look for the fault in the driver."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in str(device.card_refusal([]))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "driver may be too old for CUDA 13.0" in str(device.card_refusal([]))
