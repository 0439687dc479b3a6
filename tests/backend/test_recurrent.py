"""Recurrent layers, which PyTorch takes apart step by step where Dynamo may look into them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import singlecard

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
