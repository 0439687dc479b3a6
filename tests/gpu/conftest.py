"""What the tests on a card share. They run with ``pytest -m gpu``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from singlecard.runtime.device import card_refusal


@pytest.fixture(autouse=True)
def on_a_card() -> Iterator[None]:
    """Engines need a card that the installed TensorRT serves: say which is at hand and is not."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU")
    refusal = card_refusal([torch.empty(0, device="cuda")])
    if refusal is not None:
        pytest.skip(refusal)
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()
