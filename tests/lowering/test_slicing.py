"""Parts of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.lowering.check import check

_CALLS: dict[str, Callable[..., Any]] = {
    "slice": lambda x: (x[1:4], x[:, -3:], x[..., :-2], x[2:100], x[-100:2]),
    "slice with step": lambda x: (x[::2], x[1::3], x[:, -4:-1:2]),
    "select": lambda x: (x[0], x[-1], x[:, 2], x.select(-1, -5)),
    "narrow": lambda x: (x.narrow(1, 1, 2), x.narrow_copy(-1, -3, 2)),
    "split": lambda x: x.split(4) + x.split((1, 3), 1) + x.split(2, -1),
    "chunk": lambda x: x.chunk(4, 0) + x.tensor_split(3, -1),
    "unbind": lambda x: x.unbind(1) + x.unbind(-1),
    "diagonal": lambda x: (x.diagonal(), x.diagonal(-2, 0, 2), x.diagonal(1, -1, 1)),
    "unfold": lambda x: (x.unfold(0, 3, 1), x.unfold(-1, 2, 2), x.unfold(1, 4, 3)),
}


@pytest.mark.parametrize("kind", (torch.float32, torch.int64, torch.bool), ids=str)
@pytest.mark.parametrize("name", _CALLS)
def test_takes_parts(name: str, kind: torch.dtype) -> None:
    """Fused projections, heads and windows are cut apart by these: one off is another head."""
    x = torch.randint(0, 100, (6, 4, 5)) if kind != torch.bool else torch.rand(6, 4, 5) > 0.5
    check(_CALLS[name], x.to(kind), build=kind == torch.bool)
