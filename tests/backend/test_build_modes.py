"""When engines are built: before the first answer, behind it, or never here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import singlecard
from singlecard import choosing, session
from singlecard.engine.build import key_parts
from singlecard.errors import BuildError
from singlecard.session import Session
from singlecard.sizes import bytes_from_text
from tests.backend.machine import Evaluated, Machine

# Not a view: Dynamo would guard on what it is a view of, and take each other input for new.
X = torch.linspace(-1, 1, 12).reshape(3, 4).clone()


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


class Counted(Evaluated):
    calls = 0

    def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
        Counted.calls += 1
        return super().__call__(values)


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Builds wait until the event is set."""
    gate = threading.Event()
    build = Session._engine

    def waiting(self: Session, *args: Any) -> Any:
        assert gate.wait(60)
        return build(self, *args)

    monkeypatch.setattr(Session, "_engine", waiting)
    monkeypatch.setattr(session, "EngineRunner", Counted)
    Counted.calls = 0
    return gate


def test_answers_come_before_the_engine_and_then_from_it(
    machine: Machine, held_back: threading.Event
) -> None:
    """A service that restarts must not be silent for as long as a build takes."""
    net = model()
    call = machine.start(net, build="background")
    torch.testing.assert_close(call(X), net(X))
    assert not singlecard.wait_for_builds(0) and Counted.calls == 0
    held_back.set()
    assert singlecard.wait_for_builds(60)
    torch.testing.assert_close(call(X), net(X))
    assert Counted.calls == 1
    machine.start(net, build="background")(X)
    assert machine.captures == 1  # the next process has no need to wait


def test_threads_get_whole_answers_while_engines_are_exchanged(
    machine: Machine, held_back: threading.Event
) -> None:
    """An exchange in the middle of a call would mix two programs."""
    net = model()
    call, wrong = machine.start(net, build="background"), []
    call(X)

    def work(seed: int) -> None:
        x = torch.full((3, 4), float(seed))
        with torch.no_grad():
            expected = net(x)
            for turn in range(40):
                if turn == 20 and seed == 0:
                    held_back.set()
                if not torch.allclose(call(x), expected, atol=1e-5):
                    wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert singlecard.wait_for_builds(60)
    call(X)
    assert not wrong and Counted.calls > 0


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor
        self.register_buffer("total", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        return self.total * 2


def test_state_goes_on_across_the_exchange(machine: Machine, held_back: threading.Event) -> None:
    """A cache that PyTorch filled is the engine's cache."""
    net, expected = Counting(), Counting()
    call = machine.start(net, build="background")
    for turn in range(4):
        if turn == 2:
            held_back.set()
            assert singlecard.wait_for_builds(60)
        torch.testing.assert_close(call(X), expected(X))
        torch.testing.assert_close(net.total, expected.total)
    assert Counted.calls == 2


def test_weights_that_change_while_an_engine_is_built_are_noticed(
    machine: Machine, held_back: threading.Event
) -> None:
    """The engine is of the old weights by then."""
    net = model()
    call = machine.start(net, build="background")
    call(X)
    net[0].weight.mul_(2)
    torch.testing.assert_close(call(X), net(X))
    held_back.set()
    assert singlecard.wait_for_builds(60)
    torch.testing.assert_close(call(X), net(X))
    assert Counted.calls == 1


def test_an_engine_of_changed_weights_is_not_found_for_those_before(
    machine: Machine, held_back: threading.Event
) -> None:
    """The next process, with the weights of the file, would run what was trained meanwhile."""
    net = model()
    machine.start(net, build="background")(X)
    net[0].weight.mul_(2)
    held_back.set()
    assert singlecard.wait_for_builds(60)
    fresh = model()
    torch.testing.assert_close(machine.start(fresh)(X), fresh(X))


def test_weights_that_change_while_an_engine_is_written_do_not_get_into_it(
    machine: Machine, held_back: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry would be named by the weights before, and hold those after, for every process."""
    net, build = model(), session.get_engine
    held_back.set()

    def changing(
        lowered: Any, settings: Any, cache: Any, progress: Any, parts: Any, *more: Any
    ) -> Any:
        with torch.no_grad():
            net[0].weight.mul_(2)
        assert key_parts(lowered, settings) == parts
        return build(lowered, settings, cache, progress, parts, *more)

    monkeypatch.setattr(session, "get_engine", changing)
    call = machine.start(net, build="background")
    call(X)
    assert singlecard.wait_for_builds(60)
    monkeypatch.setattr(session, "get_engine", build)
    torch.testing.assert_close(call(X), net(X))


def test_a_build_that_fails_leaves_pytorch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails in a thread that nobody looks at: the log must say so, and answers go on."""

    def failing(*args: Any) -> Any:
        raise BuildError("no memory for the builder")

    monkeypatch.setattr(session, "get_engine", failing)
    net = model()
    call = machine.start(net, build="background")
    with caplog.at_level(logging.WARNING, "singlecard"):
        call(X)
        assert singlecard.wait_for_builds(60)
    assert "no memory for the builder" in caplog.text
    torch.testing.assert_close(call(X), net(X))


def test_sizes_that_vary_in_the_background(machine: Machine, held_back: threading.Event) -> None:
    """Guards that are found after Dynamo is done are checked by nobody."""
    net = model()
    call = machine.start(net, dynamic=True, build="background")
    call(X)
    held_back.set()
    assert singlecard.wait_for_builds(60)
    for rows in (2, 5):
        x = torch.ones(rows, 4)
        torch.testing.assert_close(call(x), net(x))
    assert Counted.calls == 2


def test_never_builds_nothing(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Where CI builds, a production machine that begins to build hides that CI did not."""
    net = model()
    with caplog.at_level(logging.WARNING, "singlecard"):
        torch.testing.assert_close(machine.start(net, build="never")(X), net(X))
    assert "build='never', and its engine is not cached" in caplog.text
    assert not list(machine.folder.rglob("engine.plan"))
    machine.start(net)(X)
    Counted.calls = 0


def test_never_uses_what_is_there(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, held_back: threading.Event
) -> None:
    """``never`` is for machines that find what was built elsewhere."""
    net = model()
    held_back.set()
    machine.start(net)(X)
    monkeypatch.setattr("singlecard.recipe._own_digest", lambda: "no recipe is known")
    Counted.calls = 0
    torch.testing.assert_close(machine.start(net, build="never")(X), net(X))
    assert Counted.calls == 1


def test_never_compares_no_plans(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Placing INT8 builds dozens of plans: minutes, on a machine that was to build nothing."""
    net = model()
    table = singlecard.calibrate(net, [X])

    def building(*args: Any) -> Any:
        raise AssertionError("a plan was built")

    monkeypatch.setattr(choosing, "trial_report", building)
    options: dict[str, Any] = {"precision": "int8", "calibration": table, "build": "never"}
    torch.testing.assert_close(machine.start(net, **options)(X), net(X), rtol=1e-2, atol=1e-2)


class Cut(nn.Module):
    """Two engines, and an op between them that stays in PyTorch."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.special.bessel_j0(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("budget, streams", [("1MiB", True), ("1GiB", False)])
def test_engines_of_a_graph_share_the_memory_budget(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, budget: str, streams: bool
) -> None:
    """A budget that each engine takes whole is no budget: the card runs out of memory."""
    made: list[Evaluated] = []

    class Kept(Evaluated):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(session, "EngineRunner", Kept)
    net = Cut(width=1024).eval()  # 4 MiB, nearly all of it in the second engine
    call = machine.start(net, memory_budget=budget, min_block_size=1)
    torch.testing.assert_close(call(X), net(X))
    shares = [item.settings.weight_budget for item in made]
    if streams:
        assert 0.9 * 2**20 < sum(shares) <= 2**20 and min(shares) > 0
    else:
        assert shares == [None, None]
    assert {item.settings.memory_budget for item in made} == {bytes_from_text(budget)}


def test_weights_that_are_replaced_before_their_engine_is_built_are_noticed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine would be of what was captured, and be taken for what is there now."""
    gate, compiled = threading.Event(), Session.compile

    def waiting(self: Session, *args: Any) -> Any:
        assert gate.wait(60)
        return compiled(self, *args)

    monkeypatch.setattr(Session, "compile", waiting)
    net = model()
    call = machine.start(net, build="background")
    call(X)
    net[0].weight.data = torch.randn(8, 4)
    gate.set()
    assert singlecard.wait_for_builds(60)
    torch.testing.assert_close(call(X), net(X))
