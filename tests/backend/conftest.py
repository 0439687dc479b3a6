"""What the tests of the backend share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from singlecard.warning import warn_once


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    """Dynamo and the warnings remember; a test must not depend on the one before."""
    torch._dynamo.reset()
    warn_once.cache_clear()
    yield
    torch._dynamo.reset()
