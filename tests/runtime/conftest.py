"""A machine with a card that is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from singlecard.network import executing, flavour
from singlecard.runtime import engine
from singlecard.runtime.arena import Arenas
from tests.runtime.stand_in import Machine


@pytest.fixture
def make_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    """Return what puts a machine in the place of this one's TensorRT and CUDA."""

    def make(*, full: bool = False) -> Machine:
        machine = Machine(tmp_path, full=full)
        monkeypatch.setattr(flavour, "tensorrt", lambda: machine.library)
        monkeypatch.setattr(executing, "card_of", lambda device: machine.card)
        monkeypatch.setattr(engine, "card_of", lambda device: machine.card)
        monkeypatch.setattr(engine, "arena_of", Arenas())
        return machine

    return make


@pytest.fixture
def machine(make_machine: Callable[..., Machine]) -> Iterator[Machine]:
    made = make_machine()
    yield made
    made.check()
