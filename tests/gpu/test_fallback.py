"""On a card that TensorRT does not serve, every model runs all the same, and says so once."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from singlecard.runtime.device import card_refusal
from singlecard.warning import SinglecardWarning, warn_once

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_a_card() -> None:
    """Any CUDA card will do."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    torch._dynamo.reset()
    warn_once.cache_clear()


@pytest.mark.parametrize("fallback", ["eager", "inductor"])
def test_answers_are_eagers(fallback: str) -> None:
    """A user who tries the backend on a data-centre card gets answers, not a traceback."""
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU()).eval().cuda()
    x = torch.randn(8, 64, device="cuda")
    with torch.inference_mode(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        call = torch.compile(model, backend="singlecard", options={"fallback": fallback})
        torch.testing.assert_close(call(x), model(x), rtol=1e-3, atol=1e-3)
        torch.compile(lambda y: model(y) + 1, backend="singlecard")(x)
    refusal = card_refusal([x])
    told = [str(item.message) for item in seen if item.category is SinglecardWarning]
    assert len(told) == (0 if refusal is None else 1)
    assert refusal is None or refusal in told[0]
