"""Scratch memory: one block for all engines on a stream."""

from __future__ import annotations

import gc

import pytest
import torch

from singlecard.errors import RuntimeFailure
from singlecard.network.runtime_settings import RuntimeSettings
from singlecard.runtime import engine
from tests.runtime.engines import doubling, runner
from tests.runtime.stand_in import Machine


def _scratch(machine: Machine) -> list[tuple[int, int]]:
    return [args for _, name, args in machine.calls if name == "set_device_memory"]


def test_engines_on_a_stream_share_the_largest_need(machine: Machine) -> None:
    """A model of a hundred engines would hold a hundred blocks, of which one is in use."""
    x = machine.tensor(torch.randn(2, 3))
    used = machine.memory.used
    runs = [runner(machine, doubling(scratch=size)) for size in (1000, 3000, 2000)]
    for run in runs:
        torch.testing.assert_close(run([x])[0], x * 2)
    assert machine.memory.used - used == 3000


def test_scratch_is_given_again_only_when_it_was_replaced(machine: Machine) -> None:
    """An engine would run in memory that is somebody else's since."""
    x = machine.tensor(torch.randn(2, 3))
    small, large = (runner(machine, doubling(scratch=size)) for size in (1000, 3000))
    small([x])
    small([x])
    assert len(_scratch(machine)) == 1
    large([x])
    small([x])
    small([x])
    assert [size for _, size in _scratch(machine)] == [1000, 3000, 3000]


def test_each_stream_has_scratch_of_its_own(machine: Machine) -> None:
    """Kernels of two streams run at the same time, and would write over each other."""
    run = runner(machine, doubling())
    for stream in (0, 4):
        with machine.card.on(stream):
            run([machine.tensor(torch.randn(2, 3))])
    first, second = _scratch(machine)
    assert first[0] != second[0]


def test_scratch_goes_with_the_last_engine(machine: Machine) -> None:
    """The card would stay full after all models are gone."""
    x = machine.tensor(torch.randn(2, 3))
    used = machine.memory.used
    one, other = (runner(machine, doubling(scratch=5000)) for _ in range(2))
    one([x])
    other([x])
    del one
    gc.collect()
    assert machine.memory.used - used == 5000
    del other
    gc.collect()
    assert machine.memory.used == used and not len(engine.arena_of)


def test_an_engine_without_scratch_asks_for_none(machine: Machine) -> None:
    """TensorRT takes no address that is null."""
    x = machine.tensor(torch.randn(2, 3))
    torch.testing.assert_close(runner(machine, doubling(scratch=0))([x])[0], x * 2)
    assert not _scratch(machine)


def test_engines_may_have_scratch_of_their_own(machine: Machine) -> None:
    """The way back, for a program that counts each engine's memory by itself."""
    x = machine.tensor(torch.randn(2, 3))
    run = runner(machine, doubling(), RuntimeSettings(shared_scratch=False))
    torch.testing.assert_close(run([x])[0], x * 2)
    assert not _scratch(machine)


def test_others_go_on_when_scratch_cannot_grow(machine: Machine) -> None:
    """One engine that does not fit would break those that do."""
    x = machine.tensor(torch.randn(2, 3))
    small, large = (runner(machine, doubling(scratch=size)) for size in (1000, 1 << 20))
    small([x])
    machine.memory.capacity = 64_000
    with pytest.raises(RuntimeFailure, match="too little free memory"):
        large([x])
    torch.testing.assert_close(small([x])[0], x * 2)
    machine.memory.capacity = 1 << 22
    torch.testing.assert_close(large([x])[0], x * 2)
