"""A graph that was compiled before goes to its engine at once, and never to a wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import singlecard
from singlecard import recalled
from singlecard.capture.fingerprint import fingerprint
from singlecard.errors import RuntimeFailure
from tests.backend.harness import Compiled
from tests.backend.machine import Evaluated, Machine


class Net(nn.Module):
    """Convolutions with batch norm, a skip connection, a head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.norm(self.conv(x)))
        return self.head(y.mean((2, 3))), F.max_pool2d(y, 2)


class Counting(nn.Module):
    """Writes to a buffer that it reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.total: Tensor
        self.register_buffer("total", torch.zeros(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.total += x.sum(0)
        return self.linear(x) + self.total


def views(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x.exp()
    return y, y.t(), x[1:]


def sized(x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return torch.cat([x, y]).reshape(-1) * x.shape[0], x.shape[0] + y.shape[0]


X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def check(got: Any, want: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_second_start_captures_nothing(machine: Machine) -> None:
    """Seconds of capture and folding at every start, to find an engine that is there."""
    model = Net().eval()
    check(machine.start(model)(X), model(X))
    assert machine.captures == 1
    second = Net().eval()
    check(machine.start(second)(X), second(X))
    assert machine.captures == 1


def test_state_is_written_by_a_recalled_engine(machine: Machine) -> None:
    """A KV cache that stays as it was answers the second token wrong."""
    for captures in (1, 1):
        model, expected = Counting().eval(), Counting().eval()
        call = machine.start(model)
        for _ in range(3):
            check(call(torch.ones(2, 4)), expected(torch.ones(2, 4)))
            check(model.total, expected.total)
        assert machine.captures == captures


def test_sizes_that_vary(machine: Machine) -> None:
    """One engine for all lengths, and its ranges are those that it was built for."""
    x, y = torch.ones(3, 4), torch.ones(5, 4)
    for _ in range(2):
        call = machine.start(sized, dynamic=True)
        check(call(x, y), sized(x, y))
        check(call(y, x[:2]), sized(y, x[:2]))
    assert machine.captures == 1
    machine.start(sized, dynamic=True, profiles={"x": {0: (2, 3, 4)}})(x, y)
    assert machine.captures == 2


def test_results_that_share_memory_take_the_long_way(machine: Machine) -> None:
    """A view of an input that comes back as a copy is not what eager PyTorch gives."""
    x = torch.rand(3, 4)
    for captures in (1, 2):
        got = machine.start(views)(x)
        check(got, views(x))
        assert got[2].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        assert got[1].untyped_storage().data_ptr() == got[0].untyped_storage().data_ptr()
        assert machine.captures == captures


def changed(change: Callable[[Net], None]) -> Net:
    model = Net().eval()
    with torch.no_grad():
        change(model)
    return model


CHANGES: dict[str, Callable[[Net], None]] = {
    "a weight": lambda net: net.head.weight[0, 0].add_(1e-3),  # type: ignore[func-returns-value]
    "a statistic": lambda net: net.norm.running_mean[0].add_(1e-3),  # type: ignore[func-returns-value, index]
    "an attribute": lambda net: setattr(net.norm, "eps", 1e-3),
    "the stride": lambda net: setattr(net.conv, "stride", (2, 2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_differs_is_captured_anew(machine: Machine, change: Callable[[Net], None]) -> None:
    """The engine of last week's weights would answer for today's."""
    machine.start(Net().eval())(X)
    other = changed(change)
    check(machine.start(other)(X), other(X))
    assert machine.captures == 2


SETTINGS: dict[str, dict[str, Any]] = {
    "precision": {"precision": "fp16"},
    "targets": {"targets": "sm86"},
    "keep_fp32": {"precision": "fp16", "keep_fp32": ("head",)},
    "exclude_ops": {"exclude_ops": "aten.relu"},
    "workspace_bytes": {"workspace_bytes": 1 << 24},
}


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS.keys())
def test_other_options_are_captured_anew(machine: Machine, options: dict[str, Any]) -> None:
    """Who asks for FP16 must not get the FP32 engine that is there already."""
    model = Net().eval()
    machine.start(model)(X)
    machine.start(model, **options)(X)
    assert machine.captures == 2


def test_other_inputs_are_captured_anew(machine: Machine) -> None:
    """Shapes, types and layouts are what an engine was built for."""
    model = Net().eval()
    machine.start(model)(X)
    for other in (X[:1], X[:, :, :4], X.to(memory_format=torch.channels_last)):
        check(machine.start(model)(other), model(other))
    assert machine.captures == 4


def test_pytorch_in_another_state_is_captured_anew(machine: Machine) -> None:
    """Autocast around the model changes its types, and no op of the graph says so."""
    model = Net().eval()
    machine.start(model)(X)
    with torch.autocast("cpu", torch.bfloat16):
        machine.start(model)(X)
    assert machine.captures == 2


def test_another_release_captures_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewrite that was wrong and is mended would live on in what it left behind."""
    model = Net().eval()
    machine.start(model)(X)
    monkeypatch.setattr("singlecard.recipe._own_digest", lambda: "another")
    machine.start(model)(X)
    assert machine.captures == 2


def test_weights_that_change_after_the_start_are_noticed(machine: Machine) -> None:
    """Training a layer on, or loading a checkpoint, must change the answers."""
    model = Net().eval()
    machine.start(model)(X)
    call = machine.start(model)
    before = call(X)
    assert machine.captures == 1
    model.head.weight.mul_(2)
    check(call(X), model(X))
    assert machine.captures == 2 and not torch.allclose(before[0], call(X)[0])
    model.norm.train()(torch.randn(8, 8, 4, 4))  # its kernel leaves version counters alone
    model.norm.eval()
    check(call(X), model(X))


@pytest.mark.parametrize("starts", [1, 2])
def test_weights_that_changed_leave_no_recipe_for_those_before(
    machine: Machine, starts: int
) -> None:
    """The next process, with the weights of the file, would run the engine of the changed ones."""
    for _ in range(starts):  # the second time from the recipe
        model = Net().eval()
        call = machine.start(model)
        check(call(X), model(X))
    model.head.weight = nn.Parameter(model.head.weight * 2)
    check(call(X), model(X))
    fresh = Net().eval()
    check(machine.start(fresh)(X), fresh(X))


def test_another_instance_leaves_no_recipe_for_the_first(machine: Machine) -> None:
    """One graph serves two models of a class; it is filed under the weights of the first."""

    def layer(module: nn.Module, x: Tensor) -> Any:
        return module(x)

    call = machine.start(layer)
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Linear(4, 4)
        check(call(model, torch.ones(2, 4)), model(torch.ones(2, 4)))
    torch.manual_seed(0)
    first = nn.Linear(4, 4)
    check(machine.start(layer)(first, torch.ones(2, 4)), first(torch.ones(2, 4)))


def test_sizes_still_vary_after_weights_change(machine: Machine) -> None:
    """The second capture comes outside of Dynamo, and must know what it knew."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    for _ in range(2):
        call = machine.start(model, dynamic=True)
        check(call(torch.ones(3, 4)), model(torch.ones(3, 4)))
    model[0].weight.mul_(2)
    for rows in (3, 5):
        check(call(torch.ones(rows, 4)), model(torch.ones(rows, 4)))
    assert machine.captures == 2


def test_a_lost_engine_is_built_again(machine: Machine) -> None:
    """Eviction may take an engine and leave what names it."""
    model = Net().eval()
    machine.start(model)(X)
    for plan in machine.folder.rglob("engine.plan"):
        plan.write_bytes(plan.read_bytes()[:-1])
    check(machine.start(model)(X), model(X))
    assert machine.captures == 2


@pytest.mark.parametrize("damage", ["cut", "edited", "of another making"])
def test_a_damaged_recipe_takes_the_long_way(machine: Machine, damage: str) -> None:
    """It names positions of arguments: one that is wrong feeds the engine something else."""
    model = Net().eval()
    machine.start(model)(X)
    (file,) = [
        path
        for path in machine.folder.rglob("*")
        if path.is_file() and b'"wiring"' in path.read_bytes()
    ]
    text = file.read_text()
    held = json.loads(text)
    if damage == "edited":
        held["value"]["wiring"]["positions"] = [1]
    elif damage == "of another making":
        del held["value"]["binding"]
    file.write_text(text[: len(text) // 2] if damage == "cut" else json.dumps(held))
    check(machine.start(model)(X), model(X))
    assert machine.captures == 2


def test_an_engine_that_fails_leaves_its_graph_to_pytorch(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory on the card is no reason to lose a request."""
    model = Net().eval()
    machine.start(model)(X)

    class Failing(Evaluated):
        def __call__(self, values: Sequence[Any]) -> Sequence[Any]:
            raise RuntimeFailure("no memory")

    monkeypatch.setattr(recalled, "EngineRunner", Failing)
    check(machine.start(model)(X), model(X))
    with pytest.raises(RuntimeFailure, match="no memory"):
        machine.start(model, strict=True)(X)
        machine.start(model, strict=True)(X)


def outside(x: Tensor) -> Tensor:
    return x + 1


torch.fx.wrap("outside")


def test_what_cannot_be_compared_has_no_fingerprint() -> None:
    """A function of the user's own may change while its name stays."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.ones(2)
    call = graph.call_function(outside, (x,))
    graph.output((call,))
    assert fingerprint(fx.GraphModule({}, graph), [torch.ones(2)]) is None
    call.target = torch.relu
    assert fingerprint(fx.GraphModule({}, graph), [torch.ones(2)]) is not None
    assert fingerprint(fx.GraphModule({}, graph), [nn.Parameter(torch.ones(2))]) is not None
    assert fingerprint(fx.GraphModule({}, graph), [torch.ones(2).to_sparse()]) is None


def test_the_reference_evaluates_with_a_full_cache_as_with_an_empty_one(tmp_path: Path) -> None:
    """Eager PyTorch compared with itself agrees, whatever is wrong with the network."""
    model, answers = Net().eval(), []
    options = {"cache_dir": tmp_path, "targets": "sm89", "precision": "fp16"}
    with torch.no_grad():
        for starts in (1, 2):
            call = Compiled(model, **options)
            before = singlecard.counters()
            answers.append(call(X)[0])
            counted = singlecard.counters() - before
            assert (counted.builds, counted.hits) == ((1, 0) if starts == 1 else (0, 1))
            assert counted.evaluations == 1
            call(X)
            assert (singlecard.counters() - before).evaluations == 2
        assert torch.equal(*answers) and not torch.equal(answers[0], model(X)[0])
