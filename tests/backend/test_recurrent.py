"""Recurrent layers, which PyTorch takes apart step by step where Dynamo may look into them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import singlecard
from tests.backend.harness import Compiled, Watched

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "rnn": lambda: nn.RNN(8, 16, nonlinearity="relu"),
    "gru": lambda: nn.GRU(8, 16, bias=False),
    "lstm": lambda: nn.LSTM(8, 16),
    "lstm, two layers, both directions": lambda: nn.LSTM(
        8, 16, 2, batch_first=True, bidirectional=True
    ),
    "lstm with a projection": lambda: nn.LSTM(8, 16, proj_size=4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_one_engine(name: str) -> None:
    """Speech and time series still run on these; in PyTorch each step is a dozen launches."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        report = singlecard.verify(LAYERS[name]().eval(), (torch.randn(3, 5, 8),))
    assert (report.coverage, report.engines) == (1.0, 1)
    assert report.mismatch is None and report.relative_l2 < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["lstm", "lstm, two layers, both directions", "gru"])
def test_compiled_layers_are_the_verified_ones(name: str) -> None:
    """PyTorch has an LSTM of its own for CPUs: what is verified would not be what runs."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = LAYERS[name]().eval(), torch.randn(3, 5, 8)
    with torch._dynamo.config.patch(allow_rnn=True):
        watched = Watched(model)
        (got, state), (want, held) = watched(x), model(x)
    assert not watched.reasons and watched.lowered > 0
    torch.testing.assert_close((got, state), (want, held))
    assert got.stride() == want.stride()


@torch.no_grad()
def test_lengths_that_vary_leave_the_layer_whole() -> None:
    """There is no number of steps; PyTorch's own layer reads memory that another op laid out."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = nn.LSTM(8, 16, batch_first=True).eval()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = Compiled(lambda x: model(x * 2)[0].transpose(1, 2) * 2, dynamic=True)
        graphs = set()
        for length in (5, 7):
            x = torch.randn(3, length, 8)
            torch.testing.assert_close(compiled(x), model(x * 2)[0].transpose(1, 2) * 2)
            graphs.add(compiled.graphs)
    assert len(graphs) == 1


def test_verify_takes_lengths_that_vary() -> None:
    """verify took the layer apart where torch.compile does not, and refused the range."""
    torch._dynamo.reset()
    model = nn.LSTM(8, 16).eval()
    with torch._dynamo.config.patch(allow_rnn=True):
        report = singlecard.verify(model, (torch.randn(5, 3, 8),), dynamic_shapes=({0: (2, 20)},))
    assert report.mismatch is None
    assert "aten.mkldnn_rnn_layer" in dict(report.fallback)


@pytest.mark.parametrize(
    ("cell", "state"), [(nn.RNNCell, 1), (nn.GRUCell, 1), (nn.LSTMCell, 2)], ids=str
)
def test_cells_are_one_engine(cell: type[nn.Module], state: int) -> None:
    """A model with a loop of its own calls the cell."""
    torch.manual_seed(0)
    held = tuple(torch.randn(3, 16) for _ in range(state))
    report = singlecard.verify(
        cell(8, 16).eval(), (torch.randn(3, 8), held if state > 1 else held[0])
    )
    assert (report.coverage, report.engines) == (1.0, 1)
    assert report.relative_l2 < 1e-5


def test_report_names_the_setting() -> None:
    """Without it Dynamo does not look into the layer, and nobody finds out what to set."""
    torch._dynamo.reset()
    report = singlecard.verify(nn.GRU(8, 16).eval(), (torch.randn(3, 5, 8),))
    ((_, reason),) = report.fallback
    assert "torch._dynamo.config.allow_rnn=True" in reason
