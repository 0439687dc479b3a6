"""CUDA graphs through PyTorch, which full TensorRT needs: the answers are eager PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from singlecard.network.card import Card
from singlecard.network.runtime_settings import has_own_graphs

pytestmark = pytest.mark.gpu


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What was recorded; those that can be replayed."""
    if has_own_graphs():
        pytest.skip("TensorRT for RTX records CUDA graphs itself")
    made: list[Callable[[], None]] = []
    record = Card.recorded

    def noted(card: Card, launch: Callable[[int], None]) -> Callable[[], None]:
        made.append(record(card, launch))
        return made[-1]

    monkeypatch.setattr(Card, "recorded", noted)
    return made


def test_graphs(tmp_path: Path, recorded: list[Callable[[], None]]) -> None:
    """Two sizes in turn, results that are kept, inputs that move or change in place, streams."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).eval().cuda()
    options: dict[str, Any] = {
        "precision": "fp16",
        "execution": "engine",
        "strict": True,
        "cache_dir": tmp_path,
        "cuda_graphs": True,
    }
    call = torch.compile(model, backend="singlecard", dynamic=True, options=options)
    pairs: list[tuple[Tensor, Tensor]] = []
    own = torch.cuda.Stream()
    for stream in (torch.cuda.current_stream(), own):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            stays = torch.randn(8, 64, device="cuda")
            for _ in range(10):
                moves = torch.randn(16, 64, device="cuda")
                for x in (stays, moves):
                    pairs.append((call(x), model(x)))
                stays += 1
    torch.cuda.synchronize()
    assert len(recorded) >= 4  # two sizes, on two streams
    for found, expected in pairs:
        assert float((found - expected).norm() / expected.norm()) < 5e-3
