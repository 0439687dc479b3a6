"""What a model keeps between calls, and what several callers do to it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from singlecard.capture.variants import REBUILDS, VARIANTS
from singlecard.warning import SinglecardWarning
from tests.backend.harness import Watched, equal


class Cache(nn.Module):
    """Writes each word's row into a buffer, and answers with a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(2, 6, 4))

    def forward(self, x: torch.Tensor, place: int) -> Any:
        self.rows[:, place : place + 1] = x
        return self.rows[:, : place + 1].sum(1), self.rows


def test_rows_of_a_buffer_are_written_in_place() -> None:
    """A cache that is replaced, not written, is lost to whoever holds the buffer."""
    ours, theirs = Cache(), Cache()
    compiled, rows = Watched(ours), ours.rows
    for place in range(4):
        x = torch.randn(2, 1, 4)
        got, want = compiled(x, place), theirs(x, place)
        equal(got, want)
        assert got[1] is rows and ours.rows is rows
    equal(rows, theirs.rows)


def test_statistics_moved_in_training_reach_evaluation() -> None:
    """Batch norm is folded into the convolution: stale statistics answer for the last epoch."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    compiled, image = Watched(model), torch.randn(2, 3, 8, 8)
    for _ in range(3):
        with torch.no_grad():
            model.train()(image * 2 + 1)
            model.eval()
            equal(compiled(image), model(image))


def test_written_under_inference_mode() -> None:
    """A checkpoint loaded inside inference_mode would not be noticed."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    compiled, image = Watched(model), torch.randn(2, 3, 8, 8)
    compiled(image)
    with torch.inference_mode():
        model[1].running_var.copy_(torch.full((4,), 3.0))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        equal(compiled(image), model(image))


def test_reset_reads_weights_that_were_changed_behind_pytorchs_back() -> None:
    """``.data`` bumps no version: the documented way out must work."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    compiled, image = Watched(model), torch.randn(2, 3, 8, 8)
    compiled(image)
    model[1].running_mean.data.fill_(2.0)  # type: ignore[union-attr, operator]
    torch._dynamo.reset()
    with torch.no_grad():
        equal(compiled(image), model(image))
    assert len(compiled.session.graphs) == 2


def caught(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(item.message) for item in found if issubclass(item.category, SinglecardWarning)]


def test_weights_that_change_for_ever_stop_being_built() -> None:
    """An engine for every step of a training loop is minutes for each call."""
    model = nn.Linear(4, 4)
    compiled, x = Watched(model), torch.randn(2, 4)

    def train() -> None:
        with torch.no_grad():
            for _ in range(REBUILDS + 5):
                equal(compiled(x), model(x))
                model.weight.add_(1)

    (message,) = caught(train)
    assert "torch._dynamo.reset()" in message
    assert len(compiled.session.graphs) == REBUILDS + 1


def test_state_goes_on_after_building_stopped() -> None:
    """The graph in PyTorch must write the state that the engine wrote before."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(3))
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x * self.factor)
            return self.total * 2

    ours, theirs = Sum(), Sum()
    compiled = Watched(ours)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(REBUILDS + 4):
            x = torch.randn(3)
            equal(compiled(x), theirs(x))
            ours.factor.add_(1)
            theirs.factor.add_(1)
    equal(ours.total, theirs.total)


def test_layers_that_share_a_graph_are_each_compiled_once() -> None:
    """Layers compiled one by one, as diffusers does, would push each other out in every call."""
    layers = [nn.Linear(4, 4) for _ in range(VARIANTS + 4)]
    compiled, x = Watched(lambda layer, x: layer(x).relu()), torch.randn(2, 4)
    rounds = []
    for _ in range(4):
        for layer in layers:
            with torch.no_grad():
                equal(compiled(layer, x), layer(x).relu())
        rounds.append(len(compiled.session.graphs))
    assert rounds[-1] == rounds[-2] == rounds[1]


def test_reset_compiles_again() -> None:
    """torch._dynamo.reset() is what people call when in doubt."""
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    compiled = Watched(model)
    for _ in range(2):
        with torch.no_grad():
            equal(compiled(x), model(x))
        torch._dynamo.reset()
    assert len(compiled.session.graphs) == 2


def run_at_once(work: Callable[[int], None], count: int) -> None:
    """Run ``work`` in threads that start together; raise what one of them raised."""
    problems: list[BaseException] = []
    start = threading.Barrier(count)

    def guarded(number: int) -> None:
        try:
            start.wait(60)
            work(number)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if problems:
        raise problems[0]


@pytest.mark.parametrize("shared", [True, False])
def test_first_calls_at_the_same_time(shared: bool) -> None:
    """A server's first requests arrive together, while the model is still being compiled."""
    count = 5
    one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    models = [one if shared else nn.Linear(4, width + 1) for width in range(count)]
    same = Watched(one)
    compiled = [same if shared else Watched(model) for model in models]

    def work(number: int) -> None:
        for _ in range(3):
            x = torch.randn(2, 4)
            with torch.no_grad():
                equal(compiled[number](x), models[number](x))

    run_at_once(work, count)


def test_weights_changed_while_threads_wait() -> None:
    """Threads that meet the same new weights must build once, and all get the new answers."""
    model, x = nn.Linear(4, 4), torch.randn(2, 4)
    compiled = Watched(model)
    compiled(x)
    with torch.no_grad():
        model.weight.mul_(2)
        want = model(x)
    run_at_once(lambda _: equal(compiled(x), want), 4)
    assert len(compiled.session.graphs) == 2
