"""What all tests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines of tests go to a folder of their own, and never to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SINGLECARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_traces() -> Iterator[None]:
    """What Dynamo learns of code, such as sizes that vary, is of one test: a user has a process."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()
