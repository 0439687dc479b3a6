"""Models that are gone: nothing that compiled, verified or exported them keeps their weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard import session
from singlecard.errors import BuildError
from tests.backend.machine import NETWORKS, Machine

X = torch.ones(4, 8)


class Net(nn.Module):
    """A class that lives on when its models do not, as Dynamo's code of it does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 64)
        self.norm = nn.BatchNorm1d(32)
        self.shift = nn.Parameter(torch.randn(32))
        self.register_buffer("scale", torch.rand(32))

    def forward(self, x: Tensor) -> Tensor:
        middle = self.norm(self.first(x)) * self.scale
        return self.last(torch.special.bessel_j0(middle + self.shift)).relu()  # type: ignore[no-any-return]


def model() -> nn.Module:
    return Net().eval()


def parts_of(module: nn.Module) -> list[weakref.ref[Any]]:
    """Watch a model, its weights and their memory."""
    tensors = [*module.parameters(), *module.buffers()]
    memory = [item.untyped_storage() for item in tensors]
    return [weakref.ref(item) for item in (module, *tensors, *memory)]


def alive(parts: list[weakref.ref[Any]]) -> list[Any]:
    return [type(item) for part in parts if (item := part()) is not None]


def bytes_alive() -> int:
    """Return the bytes of all tensors that Python knows; memory that is shared counts once."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    found = [item.untyped_storage() for item in tensors if item.device.type == "cpu"]
    return sum({item.data_ptr(): item.nbytes() for item in found}.values())


#: What a compiled model is asked for, by what may hold its weights.
OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {"execution": "reference"},
    "reference in FP16": {"execution": "reference", "precision": "fp16"},
    "nothing lowered": {"execution": "reference", "exclude_ops": ["aten.linear"]},
    "engines for other cards": {"execution": "eager"},
    "engines in the background": {"execution": "eager", "build": "background"},
    "no engine": {"execution": "eager", "build": "never"},
    "no engine to evaluate": {"execution": "reference", "build": "never"},
    "another precision": {"execution": "eager", "precision": "int8-weight"},
}


def compiled(module: nn.Module, **options: Any) -> Callable[..., Any]:
    given = {"targets": "sm89", "min_block_size": 1, **options}
    return torch.compile(module, backend="singlecard", options=given)  # type: ignore[no-any-return]


def swap(use: Callable[[nn.Module], object], rounds: int = 3) -> list[int]:
    """Use one model after the other, prove that each is gone, and return the bytes left."""
    sizes = []
    for _ in range(rounds):
        module = model()
        parts = parts_of(module)
        with torch.no_grad():
            use(module)
        assert singlecard.wait_for_builds(60)
        del module
        gc.collect()
        assert not alive(parts)
        sizes.append(bytes_alive())
    return sizes


def swap_all(use: Callable[[nn.Module], object], rounds: int = 3) -> None:
    """Use one model after the other: each must be gone, and nothing may gather."""
    sizes = swap(use, rounds)
    assert sizes[-1] <= sizes[0], "bytes of tensors after each model"


@pytest.mark.parametrize("name", OPTIONS)
def test_models_that_are_swapped_are_freed(name: str) -> None:
    """A program that loads one model after the other runs out of memory."""
    swap_all(lambda module: compiled(module, **OPTIONS[name])(X))


def test_models_that_compile_themselves_are_freed() -> None:
    """`Module.compile` is the other way to the same."""

    def use(module: nn.Module) -> None:
        module.compile(backend="singlecard", options={"execution": "reference", "targets": "sm89"})
        module(X)

    swap_all(use)


def test_calibrated_models_are_freed() -> None:
    """Calibration runs a model many times, and placement makes its weights once more each time."""

    def use(module: nn.Module) -> None:
        table = singlecard.calibrate(module, [X, 2 * X])
        compiled(module, precision="int8", calibration=table, execution="reference")(X)

    swap_all(use, rounds=2)


@pytest.mark.parametrize("strict", [False, True])
def test_models_whose_build_failed_are_freed(monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
    """An exception carries all that was on the way to it, and a log may keep the exception."""

    def refuse(*args: Any) -> None:
        raise BuildError("no room for tactics")

    def use(module: nn.Module) -> None:
        call = compiled(module, execution="reference", strict=strict)
        if strict:
            with pytest.raises(Exception, match="tactics|bessel"):
                call(X)
        else:
            call(X)

    monkeypatch.setattr(session, "get_engine", refuse)
    swap_all(use)


@pytest.mark.parametrize("build", ["now", "background"])
@pytest.mark.parametrize("recalled", [False, True], ids=["captured", "recalled"])
def test_models_with_engines_are_freed(machine: Machine, build: str, recalled: bool) -> None:
    """An engine is as large as its model: on a card, two do not fit beside one another."""

    def use(module: nn.Module) -> None:
        for _ in range(1 + recalled):
            call = machine.start(module, build=build)
            call(X)
            assert singlecard.wait_for_builds(60)
            call(X)
        NETWORKS.clear()  # which the stand-in keeps

    swap_all(use)


@pytest.mark.parametrize("options", [{"execution": "reference"}, {"execution": "eager"}])
def test_a_layer_that_is_replaced_is_freed(options: dict[str, Any]) -> None:
    """Merging or changing an adapter layer by layer would end with two models in memory."""
    module = model()
    call = compiled(module, **options)
    with torch.no_grad():
        call(X)
        for _ in range(3):
            parts = parts_of(module.last)
            module.last = nn.Linear(32, 64)
            torch.testing.assert_close(call(X), module(X))
            gc.collect()
            assert not alive(parts)


def test_weights_go_without_a_collection() -> None:
    """A collector that comes by seldom leaves a card full for as long."""
    module = model()
    call = compiled(module, execution="reference")
    with torch.no_grad():
        call(X)
        gc.collect()
        parts = [weakref.ref(module.last.weight), weakref.ref(module.last.bias)]
        gc.disable()
        try:
            module.last = nn.Linear(32, 64)
            assert not alive(parts)
        finally:
            gc.enable()


REPORTS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "verify": lambda module, folder: singlecard.verify(module, (X,), options={"targets": "sm89"}),
    "explain": lambda module, folder: singlecard.explain(module, (X,), options={"targets": "sm89"}),
    "plan_memory": lambda module, folder: singlecard.plan_memory(module, (X,), card="RTX 3060"),
    "export": lambda module, folder: singlecard.export(
        module, (X,), path=folder / "model.singlecard", options={"targets": "sm89"}
    ),
    "calibrate": lambda module, folder: singlecard.calibrate(module, [X]),
}


@pytest.mark.parametrize("name", REPORTS)
def test_reports_hold_nothing_of_their_model(name: str, tmp_path: Path) -> None:
    """Who keeps the reports of a hundred models to compare them would keep the models."""
    kept = []
    swap(lambda module: kept.append(REPORTS[name](module, tmp_path)), rounds=2)
    assert len(kept) == 2
