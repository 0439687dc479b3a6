"""What a compiled graph holds of its model once engines have the weights: nothing on the card."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import singlecard
from singlecard import recalled, session
from singlecard.backend import compile_in
from singlecard.capture.program import Program
from singlecard.errors import RuntimeFailure
from singlecard.options import Options
from singlecard.runtime.offload import move_to_host
from singlecard.session import Session
from tests.backend.machine import NETWORKS, Evaluated, Machine
from tests.runtime.memory import HostCard, Memory

X = torch.ones(2, 4)


class Cut(nn.Module):
    """Two engines, and an op with a weight between them that stays in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        middle = torch.special.bessel_j0(self.first(x) + 1)
        return self.last(torch.special.bessel_j1(middle * self.shift))  # type: ignore[no-any-return]


class Empty:
    """An engine that answers with zeros, and holds nothing of the network."""

    def __init__(self, plan: Any, binding: Any, held: object, **settings: Any) -> None:
        self.outputs = binding.outputs

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        return [torch.zeros(2, 8)] * self.outputs


class Failing(Empty):
    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        raise RuntimeFailure("no memory")


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Engines fail while there is something in this."""
    given: list[bool] = []

    class Sometimes(Evaluated):
        def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
            if given:
                raise RuntimeFailure("no memory")
            return super().__call__(values)

    monkeypatch.setattr(session, "EngineRunner", Sometimes)
    return given


def moving(kind: type[Any], card: HostCard) -> type[Any]:
    """Return a kind of engine that makes room on a card when it is called, as if it was loaded."""

    class Moving(kind):  # type: ignore[misc]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.before_load = settings["before_load"]

        def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
            NETWORKS.clear()  # which the stand-in keeps
            self.before_load(card)
            return super().__call__(values)  # type: ignore[no-any-return]

    return Moving


def _holders(tensor: Tensor) -> int:
    """Return how many tensors lie in the memory of one, it among them."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_compiled_graphs_hold_no_weights_beside_their_engines(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A card would hold each weight twice, and moving the model's own away would free nothing."""
    monkeypatch.setattr(session, "EngineRunner", Empty)
    model = Cut().eval()
    call = machine.start(model, precision=precision, min_block_size=1)
    call(X)
    NETWORKS.clear()  # which the stand-in keeps
    gc.collect()
    held = {name: _holders(weight) for name, weight in model.named_parameters()}
    assert held.pop("shift") in (1, 2)  # the op that stays in PyTorch may read it where it is
    assert set(held.values()) == {1}


def test_a_recalled_graph_holds_no_weights(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start would need more memory than the first."""
    model = nn.Linear(4, 8).eval()
    machine.start(model)(X)
    monkeypatch.setattr(recalled, "EngineRunner", Empty)
    before = machine.captures
    call = machine.start(model)
    call(X)
    NETWORKS.clear()
    gc.collect()
    assert machine.captures == before
    assert [_holders(weight) for weight in model.parameters()] == [1, 1]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_parts_that_no_engine_runs_are_captured_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Weights were let go of: PyTorch would have nothing to answer with."""
    monkeypatch.setattr(session, "EngineRunner", Failing)
    model = Cut().eval()
    call = machine.start(model, precision=precision, min_block_size=1)
    tolerance = 1e-6 if precision == "fp32" else 2e-3
    for x in (X, torch.randn(2, 4)):
        torch.testing.assert_close(call(x), model(x), rtol=tolerance, atol=tolerance)


def test_parts_captured_again_go_where_weights_are_moved(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call out of an engine's range would keep the model on the card, or off it, for good."""
    monkeypatch.setattr(session, "EngineRunner", Failing)
    model, card = nn.Linear(4, 8).eval(), HostCard(Memory())
    call = machine.start(model)
    want = call(X)
    NETWORKS.clear()
    gc.collect()
    weights = list(model.parameters())
    assert move_to_host(weights, card) == sum(weight.nbytes for weight in weights)
    assert torch.equal(call(X), want)
    assert [_holders(weight) for weight in weights] == [1, 1]


def test_parts_captured_again_read_the_weights_of_now(machine: Machine, fails: list[bool]) -> None:
    """An answer of old weights is a wrong answer, whoever computes it."""
    model = Cut().eval()
    call = machine.start(model, min_block_size=1)
    torch.testing.assert_close(call(X), model(X))
    model.first.weight.data = torch.randn(8, 4)
    fails.append(True)
    torch.testing.assert_close(call(X), model(X))


@pytest.mark.parametrize("inference", [False, True])
def test_a_moved_model_is_not_compiled_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, inference: bool
) -> None:
    """Dynamo's guards and ours look at weights at each call: a move is no change of theirs."""
    card = HostCard(Memory())
    monkeypatch.setattr(session, "EngineRunner", moving(Evaluated, card))
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).eval()
    with torch.inference_mode(inference), torch.no_grad():
        want = model(X)
        call = machine.start(model, precision="fp16", offload_weights=True)
        before = singlecard.counters()
        for _ in range(3):
            torch.testing.assert_close(call(X), want, rtol=2e-3, atol=2e-3)
        counted = singlecard.counters() - before
        assert (counted.hits, counted.builds) == (0, 1)
        assert all(card.host_view(weight) is not None for weight in model.parameters())
        assert machine.captures == 1
        torch.testing.assert_close(model(X), want)
        model[0].weight.data = torch.randn(8, 4)
        torch.testing.assert_close(call(X), model(X), rtol=2e-3, atol=2e-3)


def test_a_weight_that_comes_to_lie_where_it_lay_is_noticed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory was freed, and taken for its next value but one: the old engine would answer."""
    built: list[Empty] = []

    class Counted(Empty):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            built.append(self)

    monkeypatch.setattr(session, "EngineRunner", Counted)
    model, memory = nn.Linear(4, 8).eval(), torch.randn(8, 4).numpy()
    model.weight.data = torch.from_numpy(memory)
    call = machine.start(model)
    call(X)
    NETWORKS.clear()
    gc.collect()
    address = model.weight.data_ptr()
    model.weight.data = torch.randn(8, 4)
    memory += 1  # as an allocator gives freed memory out again
    model.weight.data = torch.from_numpy(memory)
    assert model.weight.data_ptr() == address
    call(X)
    assert len(built) == 2


def test_parts_are_not_kept_of_weights_that_were_changed_back(
    machine: Machine, fails: list[bool]
) -> None:
    """Who swaps weights would get an answer of the others, where PyTorch gives it."""
    model = nn.Linear(4, 8).eval()
    call = machine.start(model)
    call(X)
    fails.append(True)
    one, other = model.weight.data, torch.randn(8, 4)
    for weight in (other, one, other):
        model.weight.data = weight
        torch.testing.assert_close(call(X), model(X))


@pytest.mark.parametrize("start", ["first", "second"])
def test_inputs_of_the_first_call_are_not_held(machine: Machine, start: str) -> None:
    """A card would hold a batch, or a cache of keys and values, that nobody can reach."""
    model = nn.Linear(4, 8).eval()
    for _ in range(1 if start == "first" else 2):
        call, x = machine.start(model), torch.randn(2, 4)
        call(x)
    memory = weakref.ref(x.untyped_storage())
    del x
    gc.collect()
    assert memory() is None


def test_engines_that_make_room_for_each_other_are_built_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache smaller than a model's engines would leave the whole model in PyTorch."""
    chosen = Options.parse(
        {"cache_dir": tmp_path, "targets": "sm89", "cache_limit": 1, "min_block_size": 1}
    )
    held = Session(chosen, "eager", True)

    def compiler(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return compile_in(held, graph, examples)

    with torch.no_grad():
        torch.compile(Cut().eval(), backend=compiler)(X)
    assert [len(graph.engines) for graph in held.graphs] == [3]
    assert "could not capture" not in caplog.text


def test_constants_under_two_names_are_let_go_of_under_both() -> None:
    """A weight that two ops read would stay in memory beside its engine."""
    graph = fx.Graph()
    graph.output(())
    program = Program(fx.GraphModule({}, graph), (), {}, (), ())
    value = torch.ones(4)
    for name in ("one", "other"):
        program.module.register_buffer(name, value)
    program.let_go()
    assert {item.device.type for item in program.module._buffers.values() if item is not None} == {
        "meta"
    }


@pytest.mark.parametrize("build", ["now", "background"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_are_moved_before_what_held_them_is_collected(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, precision: str, build: str
) -> None:
    """The card would hold them and their engine, for want of a run of the garbage collector."""
    card = HostCard(Memory())
    monkeypatch.setattr(session, "EngineRunner", moving(Empty, card))
    model = nn.Linear(4, 8).eval()
    call = machine.start(model, precision=precision, build=build, offload_weights=True)
    gc.disable()
    try:
        call(X)
        assert singlecard.wait_for_builds(60)
        call(X)
    finally:
        gc.enable()
    assert all(card.host_view(weight) is not None for weight in model.parameters())


@pytest.mark.parametrize("changed", ["weight", "statistics"])
@pytest.mark.parametrize("recalled_graph", [False, True], ids=["captured", "recalled"])
def test_an_engine_of_weights_that_are_no_more_goes(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, recalled_graph: bool, changed: str
) -> None:
    """Merging an adapter into a large model would take the memory of two engines: one too many."""
    made: list[weakref.ref[Empty]] = []

    class Counted(Empty):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(weakref.ref(self))

    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval()
    if recalled_graph:
        machine.start(model)(X)
    for room in (session, recalled):
        monkeypatch.setattr(room, "EngineRunner", Counted)
    captures = machine.captures
    call = machine.start(model)
    call(X)
    assert (machine.captures == captures) == recalled_graph
    if changed == "weight":
        model[0].weight.mul_(2)
    else:
        model[1].train()(torch.randn(5, 8))
        model.eval()
    call(X)
    gc.collect()
    assert [engine() is None for engine in made] == [True, False]
