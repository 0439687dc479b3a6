"""`singlecard.calibrate`: whatever data and model it is given, good scales or a clear error."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import singlecard
from singlecard.errors import OptionError


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches(count: int = 4, rows: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, 8, generator=generator) for _ in range(count)]


INPUT, HIDDEN = "0:linear/input", "2:linear/input"


def test_the_table_holds_what_was_seen() -> None:
    """Every scale comes from here."""
    model, data = small(), batches()
    table = singlecard.calibrate(model, data, smoothing=None)
    everything = torch.cat(data)
    assert table.samples == 4 and table.method == "min-max"
    assert table.tensors.keys() == {INPUT, HIDDEN}
    assert table.tensors[INPUT].threshold == float(everything.abs().max())
    hidden = model[:2](everything).detach()
    assert math.isclose(table.tensors[HIDDEN].threshold, float(hidden.abs().max()), rel_tol=1e-5)
    assert torch.allclose(
        torch.tensor(table.tensors[HIDDEN].means), hidden.mean(0), rtol=1e-4, atol=1e-5
    )
    assert table.missing == () and table.keep_fp32 == ()


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.cat(batches()))


@pytest.mark.parametrize(
    "data",
    [
        batches(),
        (batch for batch in batches()),
        DataLoader(Stream(), batch_size=3),
        [{"input": batch} for batch in batches()],
    ],
    ids=["list", "generator", "loader of a stream", "keywords"],
)
def test_forms_of_data(data: Any) -> None:
    """A form that is fed otherwise gives other scales, silently."""
    expected = singlecard.calibrate(small(), batches())
    assert singlecard.calibrate(small(), data).tensors == expected.tensors


def test_a_loop_of_ones_own() -> None:
    """Evaluation loops have tokenizers and metrics in them that no data argument can hold."""
    model = small()
    with singlecard.calibrating(model) as calibration, torch.inference_mode():
        answers = [model(batch) for batch in batches()]
    assert calibration.table() == singlecard.calibrate(small(), batches())
    for answer, batch in zip(answers, batches(), strict=True):
        torch.testing.assert_close(answer, model(batch).detach())


def test_the_model_is_left_as_it_was() -> None:
    """A model that stays watched would be slow, and leak."""
    model = small()
    model.compile(backend="eager")
    before = model._compiled_call_impl
    singlecard.calibrate(model, batches())
    assert model._compiled_call_impl is before
    with pytest.raises(KeyError), singlecard.calibrating(model) as calibration:
        model(batches()[0])
        raise KeyError
    assert model._compiled_call_impl is before
    model(batches()[0])
    assert calibration.session.seen.calls == 1


def test_what_was_compiled_before_is_calibrated() -> None:
    """Users compile first and calibrate later; the names must not depend on it."""
    expected = singlecard.calibrate(small(), batches())
    inside = small()
    inside.compile(backend="eager")
    assert singlecard.calibrate(inside, batches()) == expected
    assert singlecard.calibrate(torch.compile(small(), backend="eager"), batches()) == expected


def test_a_function() -> None:
    """A function around a model has the model's names, so that its table fits both."""
    model = small()
    table = singlecard.calibrate(lambda x: model(x) * 2, batches())
    assert table == singlecard.calibrate(model, batches())
    with pytest.raises(OptionError, match="calibrating watches an nn.Module, got function"):
        with singlecard.calibrating(lambda x: x):  # type: ignore[arg-type]
            pass


def test_several_graphs() -> None:
    """Models with a graph break are calibrated whole; ops of one name share a range."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x) @ x.transpose(0, 1)
            torch._dynamo.graph_break()
            return self.second((x * 100) @ x.new_ones(x.shape[0], 8))

    table = singlecard.calibrate(Broken().eval(), batches())
    assert len(table.graphs) == 2
    assert {"first:linear/input", "second:linear/input"} <= table.tensors.keys()


class Looped(nn.Module):
    """The same code twice, with other weights: after a break, names are those of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = Breaking(8, 6), Breaking(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x) * 100)


class Breaking(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.linear(x)


def test_names_that_two_graphs_share() -> None:
    """Channels of one layer are not those of the other: such a scale would be of neither."""
    table = singlecard.calibrate(Looped().eval(), batches())
    (shared,) = table.tensors.values()
    assert len(table.graphs) == 2
    assert not shared.divisor and not shared.means
    assert shared.largest > 50


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query(x).unflatten(-1, (2, 8)).transpose(1, 2)
        seen = nn.functional.scaled_dot_product_attention(heads, heads, heads)
        return self.out(seen.transpose(1, 2).flatten(2))


def test_calls_of_many_lengths() -> None:
    """Sentences have any length; names and statistics must not depend on it."""
    model = Attending().eval()
    data = [torch.randn(2, length, 16) for length in (3, 7, 5, 11, 4)]
    table = singlecard.calibrate(model, data)
    assert table.samples == 5 and len(table.graphs) == 1
    one = singlecard.calibrate(model, [data[0]] * 2)
    assert one.graphs == table.graphs and one.tensors.keys() == table.tensors.keys()


def test_options_of_the_backend_are_taken() -> None:
    """One dictionary of options serves calibration and compilation."""
    options = {"precision": "int8", "targets": "sm89", "strict": True}
    assert singlecard.calibrate(small(), batches(), options=options).samples == 4


def test_settings_are_kept_and_used() -> None:
    """Two tables made otherwise must be told apart later."""
    table = singlecard.calibrate(
        small(), batches(), method="percentile", percentile=80, smoothing=None,
        bias_correction=False, keep_statistics=False,
    )  # fmt: skip
    scale = table.tensors[INPUT]
    assert (table.method, table.percentile) == ("percentile", 80)
    assert scale.threshold < scale.largest
    assert scale.means == () and scale.statistics is None
    smoothed = singlecard.calibrate(small(), batches(), smoothing=0.5, weights="int4")
    assert len(smoothed.tensors[INPUT].divisor) == 8
    assert not table.tensors[INPUT].divisor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("length", [4, None])
def test_progress_is_shown_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, length: int | None
) -> None:
    """Minutes of silence look like a hang; bars in a log file are noise."""
    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        singlecard.calibrate(small(), batches() if length else iter(batches()))
        assert ("calibrating" in stream.getvalue()) is shown


def test_progress_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller with bars of its own gets the numbers, and no second bar."""
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    told: list[tuple[int, int | None]] = []
    singlecard.calibrate(small(), batches(2), progress=lambda *now: told.append(now))
    assert told == [(1, 2), (2, 2)]
    assert stream.getvalue() == ""


ONE_BY_ONE: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(3, 6, 3, groups=3).eval(),
    lambda: nn.Conv1d(3, 6, 3).eval(),
]


@pytest.mark.parametrize("make", ONE_BY_ONE)
def test_means_of_convolutions(make: Callable[[], nn.Module]) -> None:
    """Bias correction by the mean of another channel adds an error instead of taking one away."""
    model = make()
    dims = 2 if isinstance(model, nn.Conv2d) else 1
    shift = torch.arange(3.0).reshape(1, 3, *[1] * dims)
    data = [torch.rand(2, 3, *[8] * dims) + shift for _ in range(2)]
    table = singlecard.calibrate(model, data)
    (scale,) = table.tensors.values()
    expected = torch.cat(data).transpose(0, 1).flatten(1).mean(1)
    torch.testing.assert_close(torch.tensor(scale.means), expected, rtol=1e-4, atol=1e-5)
